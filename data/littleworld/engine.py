"""The engine: one program, and the ways to run it.

A program is a function `program(t)` that tells a document through its teller `t`.
It has two primitives, and every random decision goes through one of them:

    t.choose("plot", [lost, gift])     a silent choice: nothing is said yet
    t.tell("lost.search")              a sentence: one template of the group,
                                       with its slots filled

A template is English (or Chinese) with four kinds of parts:

    Once there was         plain text
    <hero:name>            a draw: a name nobody has yet, remembered as `hero`;
    <kind>                 short for <kind:kind>; <kind.a> says it as "a fox"
    {hero} {hero.his}      fixed: what the story's state demands, at no cost
    (small|quiet)          a free word

Two tellers run the same program. The `Writer` rolls dice and writes a document, and
notes how many bits each decision cost. The `Reader` is given a text and follows only
decisions that agree with it. Where several agree it remembers the others as paths and
`read` runs the program again along each of them, so that every derivation is found
and probabilities are exact. A lenient reader lets a fixed slot hold any word of its
class and notes a fault: so a wrong name is told apart from broken grammar.
"""

import heapq
import math
import re
from typing import NamedTuple

SPACE = {"en": " ", "zh": ""}  # what stands between two sentences


class Item:
    """One thing of the world: its class and its forms in each language.

    `forms["en", "word"]` is its plain name, `forms["en", "eats"]` what else is known
    of it. The form "word.a" is "word" with its article. A number has a `value`. In a
    class with a long tail a `weight` says how often the item is drawn.
    """

    __slots__ = ("cls", "forms", "value", "weight")

    def __init__(self, cls, forms, value=None):
        self.cls, self.forms, self.value, self.weight = cls, forms, value, 1.0

    def form(self, language, form="word"):
        try:
            return self.forms[language, form]
        except KeyError:
            base, dot, article = form.rpartition(".")
            if article != "a" or not dot:
                reason = f"{self} has no form {form!r} in {language!r}"
                raise ValueError(reason) from None
            word = self.form(language, base)
            if language == "en":
                text = ("an " if word[0] in "aeiou" else "a ") + word
            else:
                text = f"一{self.forms[language, 'measure']}{word}"
            self.forms[language, form] = text
            return text

    def knows(self, form):
        """Does the lexicon say this of the item?"""
        return any(known == form for _, known in self.forms)

    def __repr__(self):
        return f"<{self.cls}: {self.forms['en', 'word']}>"


_numbers = {}


def number(value):
    """The Item of an integer; the same object every time."""
    if value not in _numbers:
        forms = {(language, "word"): str(value) for language in SPACE}
        _numbers[value] = Item("number", forms, value)
    return _numbers[value]


def numbers(first, last):
    """The Items of first, first + 1, ..., last."""
    return [number(value) for value in range(first, last + 1)]


def sequence(values):
    """An Item that says several numbers: '3 4 5'."""
    text = " ".join(map(str, values))
    return Item("sequence", {(language, "word"): text for language in SPACE})


# ---------------------------------------------------------------- templates


class Part(NamedTuple):
    """One part of a template: "text", "draw", "fixed" or "free"; retold: "same"."""

    role: str
    text: str = ""  # the plain text, or the name of the slot
    cls: str = ""
    form: str = "word"
    words: tuple = ()


PART = re.compile(
    r"<(?P<draw>\w+)(?::(?P<cls>\w+))?(?:\.(?P<draw_form>[\w.]+))?>"
    r"|\{(?P<fixed>\w+)(?:\.(?P<fixed_form>[\w.]+))?\}"
    r"|\((?P<free>[^()|]+(?:\|[^()|]+)+)\)"
)


def full_form(form):
    """The form a template asks for: nothing is the word, `a` the word with article."""
    return "word.a" if form == "a" else form or "word"


def parse_template(text):
    """'{hero} had <toy.a>.' -> its parts, in order."""
    parts, end = [], 0
    for match in PART.finditer(text):
        if match.start() > end:
            parts.append(Part("text", text[end : match.start()]))
        end = match.end()
        if text[end : end + 1].isascii() and text[end : end + 1].isalnum():
            raise ValueError(f"no space after {match[0]} in the template {text!r}")
        if slot := match["draw"]:
            form = full_form(match["draw_form"])
            parts.append(Part("draw", slot, match["cls"] or slot, form))
        elif slot := match["fixed"]:
            parts.append(Part("fixed", slot, "", full_form(match["fixed_form"])))
        else:
            words = match["free"].split("|")
            if any(a != b and a.startswith(b) for a in words for b in words):
                raise ValueError(f"a free word begins another in {text!r}")
            parts.append(Part("free", words=tuple(words)))
    if end < len(text):
        parts.append(Part("text", text[end:]))
    for part in parts:
        if part.role == "text" and re.search(r"[<>{}()|]", part.text):
            raise ValueError(f"a stray bracket in the template {text!r}")
    return tuple(parts)


def settled(template, language, chosen=()):
    """A half of the template when all is known: draws are fixed, free words chosen."""
    chosen, parts = iter(chosen), []
    for part in template[language]:
        if part.role == "draw":
            part = part._replace(role="fixed", cls="")
        elif part.role == "free":
            part = part._replace(role="same", text=part.words[next(chosen)])
        parts.append(part)
    return tuple(parts)


class Step(NamedTuple):
    """One entry of a trace: at `position`, `length` characters, what and its cost.

    `label` is the class of a slot ("name"), "sentence" for the choice of a template,
    "word" for a free word, or the name of a silent choice. `first` is False for a
    fixed slot, which says again what the text has already settled.
    """

    position: int
    length: int
    label: str
    bits: float
    first: bool


class Fault(NamedTuple):
    """A slot that says something else than the state demands."""

    slot: str
    wanted: str
    got: str
    position: int


# ------------------------------------------------------------------ tellers


class Teller:
    """What both tellers share: the state of the story and where we are in the text."""

    def __init__(self, world, forced=None):
        self.world, self.dial = world, world.dial
        self.forced = forced or {}  # slots whose value a caller has settled
        self.state = {}  # slot -> Item
        self.domains = {}  # slot -> list of Items, or function of the state
        self.language, self.join, self.position = "en", "", 0
        self.last, self.chosen = None, []  # the template said last, and its free words
        self.record = None  # or a list: what retelling every sentence needs
        self.trace = []

    def __getitem__(self, slot):
        return self.state[slot]

    def __setitem__(self, slot, item):
        self.state[slot] = item

    def __contains__(self, slot):
        return slot in self.state

    def knows(self, group):
        """Is everything settled that the group's templates say?"""
        return self.world.needs(group) <= self.state.keys()

    def line(self):
        """The next sentence begins a new line."""
        self.join = "\n"

    def remember(self):
        """Note what the sentence just said was, if a record is kept."""
        if self.record is not None:
            self.record.append((self.last, dict(self.state), self.chosen))

    @property
    def bits(self):
        return math.fsum(step.bits for step in self.trace)

    def pool(self, slot, cls, state):
        """What a draw may yield: the slot's domain, or what no other slot holds yet."""
        if slot in self.forced:
            return [self.forced[slot]]
        domain = self.domains.get(slot)
        if domain is not None:
            return domain(state) if callable(domain) else domain
        taken = [v for k, v in state.items() if v.cls == cls and k != slot]
        if self.forced:
            others = ((k, v) for k, v in self.forced.items() if isinstance(v, Item))
            taken += [v for k, v in others if v.cls == cls and k != slot]
        words = self.world.words[cls]
        return [item for item in words if item not in taken] if taken else words


class Writer(Teller):
    """Tells a document by rolling dice; `rng.random()` is the only source of chance."""

    def __init__(self, world, rng, forced=None):
        super().__init__(world, forced)
        self.random, self.pieces = rng.random, []

    @property
    def text(self):
        return "".join(self.pieces)

    def note(self, label, bits, length=0, first=True):
        self.trace.append(Step(self.position, length, label, bits, first))

    def write(self, piece):
        self.pieces.append(piece)
        self.position += len(piece)

    def choose(self, label, options, weights=None):
        """Choose one option in silence."""
        if label in self.forced:
            return self.forced[label]
        weights = weights or [1] * len(options)
        total = sum(weights)
        mark = self.random() * total
        index = 0
        while mark >= weights[index] and index < len(weights) - 1:
            mark -= weights[index]
            index += 1
        self.note(label, math.log2(total / weights[index]))
        return options[index]

    def follow(self, label, wanted, options):
        """Take the branch that the state demands."""
        return wanted

    def tell(self, *groups, chance=1.0):
        """Say one sentence of the groups, with this chance; return its group."""
        options = self.world.options(groups)
        if chance < 1:
            said = self.random() < chance
            self.note("sentence", -math.log2(chance if said else 1 - chance))
            if not said:
                return None
        group, template = options[int(self.random() * len(options))]
        self.note("sentence", math.log2(len(options)))
        self.last, self.chosen = template, []
        self.write(self.join)
        self.say(template)
        self.join = SPACE[self.language]
        self.remember()
        return group

    def retell(self, template, chosen=()):
        """Say a sentence once more, in the language that is set now."""
        self.write(self.join)
        self.say({self.language: settled(template, self.language, chosen)})
        self.join = SPACE[self.language]

    def draw(self, cls, pool):
        """An item of the pool, and its bits; long-tailed classes have weights."""
        if cls not in self.world.tailed:
            return pool[int(self.random() * len(pool))], math.log2(len(pool))
        total = math.fsum(item.weight for item in pool)
        mark = self.random() * total
        for item in pool:
            mark -= item.weight
            if mark < 0:
                break
        return item, math.log2(total / item.weight)

    def say(self, template):
        language = self.language
        for part in template[language]:
            if part.role == "text":
                self.write(part.text)
            elif part.role == "fixed":
                item = self.state[part.text]
                word = item.form(language, part.form)
                self.note(label_of(item.cls, part.form), 0.0, len(word), first=False)
                self.write(word)
            elif part.role == "draw":
                pool = self.pool(part.text, part.cls, self.state)
                item, bits = self.draw(part.cls, pool)
                self.state[part.text] = item
                word = item.form(language, part.form)
                self.note(part.cls, bits, len(word))
                self.write(word)
            elif part.role == "same":
                self.note("word", 0.0, len(part.text), first=False)
                self.write(part.text)
            else:
                self.chosen.append(int(self.random() * len(part.words)))
                word = part.words[self.chosen[-1]]
                self.note("word", math.log2(len(part.words)), len(word))
                self.write(word)


def label_of(cls, form):
    """The class of a slot, as faults and traces name it: 'kind', 'kind.eats'."""
    form = form.removesuffix(".a")
    return cls if form in ("word", "he", "him", "his") else f"{cls}.{form}"


class Dead(Exception):
    """The text cannot go on this way."""


class Ended(Exception):
    """An open-ended reader has used up its text."""


class Match:
    """A template as far as it has been found in the text, and what it settles."""

    def __init__(self, position, state):
        self.position, self.state = position, state
        self.steps, self.faults, self.chosen, self.ended = [], [], [], False

    def note(self, label, bits, length, first=True):
        self.steps.append(Step(self.position, length, label, bits, first))


SILENT = -1  # the index of "say nothing" among the options of a sentence


class Reader(Teller):
    """Tells a given text: takes the decisions in `path`, then those that agree.

    Decisions not taken go to `others` as (faults so far, path). `lenient` lets fixed
    slots go wrong; `open_end` takes the text for the beginning of a document.
    """

    def __init__(self, world, text, path=(), lenient=False, open_end=False):
        super().__init__(world)
        self.text, self.path = text, path
        self.lenient, self.open_end = lenient, open_end
        self.taken, self.others, self.faults = [], [], []
        self.slots = 0

    def branch(self, candidates):
        """Take the candidate (faults, index) that the path names, or else the best."""
        if not candidates:
            raise Dead
        candidates.sort()
        for faults, index in candidates[1:]:
            self.others.append((len(self.faults) + faults, (*self.taken, index)))
        self.taken.append(candidates[0][1])
        return candidates[0][1]

    def next_on_path(self):
        """The index that the path prescribes here, or None where it has ended."""
        here = len(self.taken)
        return self.path[here] if here < len(self.path) else None

    def choose(self, label, options, weights=None):
        self.stop_at_end()
        index = self.next_on_path()
        indices = range(len(options)) if index is None else [index]
        index = self.branch([(0, i) for i in indices])
        weights = weights or [1] * len(options)
        bits = math.log2(sum(weights) / weights[index])
        self.trace.append(Step(self.position, 0, label, bits, True))
        return options[index]

    def follow(self, label, wanted, options):
        if not self.lenient:
            return wanted
        index = self.next_on_path()
        indices = range(len(options)) if index is None else [index]
        index = self.branch([(options[i] != wanted, i) for i in indices])
        self.slots += 1
        if options[index] != wanted:
            fault = Fault(label, str(wanted), str(options[index]), self.position)
            self.faults.append(fault)
        return options[index]

    def stop_at_end(self):
        if self.open_end and self.position == len(self.text):
            raise Ended

    def tell(self, *groups, chance=1.0):
        self.stop_at_end()
        options = self.world.options(groups)
        index = self.next_on_path()
        indices = range(len(options)) if index is None else [index]
        matches = {i: self.match(options[i][1]) for i in indices if i != SILENT}
        candidates = [(len(m.faults), i) for i, m in matches.items() if m]
        if chance < 1 and index in (None, SILENT):
            candidates.append((0, SILENT))
        index = self.branch(candidates)
        if chance < 1:
            bits = -math.log2(chance if index != SILENT else 1 - chance)
            self.trace.append(Step(self.position, 0, "sentence", bits, True))
        if index == SILENT:
            return None
        bits = math.log2(len(options))
        self.trace.append(Step(self.position, 0, "sentence", bits, True))
        self.accept(matches[index])
        group, self.last = options[index]
        self.remember()
        return group

    def retell(self, template, chosen=()):
        self.stop_at_end()
        match = self.match({self.language: settled(template, self.language, chosen)})
        if match is None or match.faults and not self.lenient:
            raise Dead
        self.accept(match)

    def accept(self, match):
        self.trace += match.steps
        if match.ended:
            raise Ended
        self.position, self.state = match.position, match.state
        self.chosen = match.chosen
        self.faults = self.faults + match.faults
        self.slots += sum(not step.first for step in match.steps)
        self.join = SPACE[self.language]

    def match(self, template):
        """The template at this position as a Match, or None.

        Words of a class never begin one another (the World sees to that), so there is
        at most one way in which a template fits.
        """
        found = Match(self.position, self.state)
        for part in (Part("text", self.join), *template[self.language]):
            if not getattr(self, f"match_{part.role}")(part, found):
                return None
            if found.ended:
                break
        return found

    def match_text(self, part, found):
        return self.take(part.text, found)

    def match_fixed(self, part, found):
        item = found.state[part.text]
        word = wanted = item.form(self.language, part.form)
        label = label_of(item.cls, part.form)
        if self.lenient:
            if self.open_end and self.may_end(item.cls, part.form, found):
                return True
            word = self.word_here(item.cls, part.form, found.position)
            if word is None:
                return False
            if word != wanted:
                found.faults.append(Fault(label, wanted, word, found.position))
        found.note(label, 0.0, len(word), first=False)
        return self.take(word, found)

    def match_same(self, part, found):
        """A free word as it was chosen before; leniently, any of them."""
        word = part.text
        if self.lenient and not self.text.startswith(word, found.position):
            rest = self.text[found.position :]
            if self.open_end and any(w.startswith(rest) for w in part.words):
                found.ended = True
                return True
            other = next((w for w in part.words if rest.startswith(w)), None)
            if other is None:
                return False
            found.faults.append(Fault("word", word, other, found.position))
            word = other
        found.note("word", 0.0, len(word), first=False)
        return self.take(word, found)

    def match_free(self, part, found):
        if self.ends_in("word", part.words, found):
            return True
        for index, word in enumerate(part.words):
            if self.text.startswith(word, found.position):
                found.chosen.append(index)
                found.note("word", math.log2(len(part.words)), len(word))
                return self.take(word, found)
        return False

    def match_draw(self, part, found):
        pool = self.pool(part.text, part.cls, found.state)
        if self.open_end:
            forms = [item.form(self.language, part.form) for item in pool]
            if self.ends_in(part.cls, forms, found, self.weights(part.cls, pool)):
                return True
            if self.lenient and self.may_end(part.cls, part.form, found):
                return True
        word = self.word_here(part.cls, part.form, found.position)
        if word is None:
            return False
        item = self.world.find(part.cls, self.language, part.form, word)
        if item not in pool:
            if not self.lenient:
                return False
            found.faults.append(Fault(part.cls, "another", word, found.position))
        bits = math.log2(len(pool) or 1)
        if weights := self.weights(part.cls, pool):
            bits = math.log2(math.fsum(weights) / item.weight)
        found.note(part.cls, bits, len(word))
        found.state = {**found.state, part.text: item}
        return self.take(word, found)

    def weights(self, cls, pool):
        """How often each item of the pool is drawn; None if all have equal chances."""
        return [i.weight for i in pool] if cls in self.world.tailed else None

    def word_here(self, cls, form, position):
        """The word of this class that stands here, or None."""
        found = self.world.pattern(cls, self.language, form).match(self.text, position)
        return found and found[0]

    def take(self, word, found):
        """Move over this word, if it stands here; or end within it."""
        if self.text.startswith(word, found.position):
            found.position += len(word)
            return True
        found.ended = self.open_end and self.is_last(word, found.position)
        return found.ended

    def is_last(self, word, position):
        """Is what is left of the text the beginning of this word?"""
        return len(self.text) - position <= len(word) and word.startswith(
            self.text[position:]
        )

    def may_end(self, cls, form, found):
        """For an open end: does the text end within any word of this class?"""
        rest = self.text[found.position :]
        found.ended = self.world.begins(cls, self.language, form, rest)
        return found.ended

    def ends_in(self, label, words, found, weights=None):
        """For an open end: does the text end within one of these words?

        Each may go on differently, so their chances are added up.
        """
        if not self.open_end:
            return False
        fits = [self.is_last(word, found.position) for word in words]
        if any(fits):
            weights = weights or [1] * len(words)
            fitting = math.fsum(w for w, fit in zip(weights, fits, strict=True) if fit)
            found.note(label, math.log2(math.fsum(weights) / fitting), 0)
            found.ended = True
        return any(fits)


# ------------------------------------------------------------------ reading


def read(
    program, world, text, lenient=False, open_end=False, starts=((),), limit=20_000
):
    """Find every way in which the program tells the text: readers at its end.

    A lenient reading keeps those with the fewest faults. `starts` are the paths to
    begin with, if others are known to fail. Raises RuntimeError if there are more paths
    than `limit`: an inexact answer is none.
    """
    paths, found, best, count = [(0, 0, path) for path in starts], [], math.inf, 0
    while paths and paths[0][0] <= best:
        reader = Reader(world, text, heapq.heappop(paths)[2], lenient, open_end)
        try:
            program(reader)
            complete = reader.position == len(text)
        except Dead:
            complete = False
        except Ended:
            complete = True
        for faults, path in reader.others:
            count += 1
            heapq.heappush(paths, (faults, -count, path))
        if count > limit:
            raise RuntimeError(f"more than {limit} ways to begin reading {text[:40]!r}")
        if complete:
            found.append(reader)
            if lenient:
                best = min(best, len(reader.faults))
    fewest = min((len(reader.faults) for reader in found), default=0)
    return [reader for reader in found if len(reader.faults) == fewest]


def add_probabilities(bits):
    """The bits of an event that happens in several ways of these bits each."""
    bits = sorted(bits)
    if len(bits) < 2:
        return bits[0] if bits else math.inf
    return bits[0] - math.log2(math.fsum(2 ** (bits[0] - b) for b in bits))
