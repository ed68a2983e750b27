"""The world: the lexicon at one setting of the dial, and what can be done with it."""

import functools
import random
import re
from typing import NamedTuple

from littleworld import plots
from littleworld.engine import (
    Step,
    Writer,
    add_probabilities,
    number,
    read,
    sequence,
)
from littleworld.lexicon import (
    check_halves,
    check_words,
    load_dial,
    load_lexicon,
    make_item,
    parse_pair,
)

DIGITS = "0123456789"
NUMBER = "(?:0|[1-9][0-9]{0,3})"


class Document(NamedTuple):
    """A sampled document: its text, exact bits, kind, trace and final state."""

    text: str
    bits: float
    kind: str
    trace: list[Step]
    state: dict


class Verdict(NamedTuple):
    """What `check` finds.

    `right`: a document of this world. `grammatical`: it would be one but for `faults`
    among its `slots` (places where the state fixes the word). `reached`: how many
    characters hold. `kind` and `state` tell what was read, if anything was.
    """

    right: bool
    grammatical: bool
    faults: list
    reached: int
    slots: int = 0
    kind: str | None = None
    state: dict = {}


class World:
    """Little World at one setting of the dial: a name from dials.toml, or a table."""

    def __init__(self, dial="small"):
        self.dial_name = dial  # as it was given: a name, or the table itself
        self.dial = load_dial(dial)
        lexicon = load_lexicon(self.dial)
        sizes = self.dial["words"]
        self.words = {
            cls: [make_item(cls, entry, lexicon) for entry in entries[: sizes.get(cls)]]
            for cls, entries in lexicon["words"].items()
        }
        self.tailed = set(self.dial.get("tailed", ()))
        for cls in self.tailed:  # Zipf's law: the tenth is drawn a tenth as often
            for rank, item in enumerate(self.words[cls], 1):
                item.weight = 1 / rank
        self.groups = {
            f"{section}.{name}": [parse_pair(text) for text in texts]
            for section, groups in lexicon["sentences"].items()
            for name, texts in groups.items()
        }
        self._topics, self._needs = {}, {}
        for group, templates in self.groups.items():
            section, topic = group.split(".")
            self._topics.setdefault(section, []).append(topic)
            self._needs[group] = set().union(*map(settled_before, templates))
        self._options, self._patterns, self._found = {}, {}, {}
        self._check()

    def _check(self):
        """Refuse a lexicon in which a text could be read in two ways."""
        for cls, items in self.words.items():
            check_words(cls, items)
        if "zh" in self.dial["languages"]:
            for group, templates in self.groups.items():
                check_halves(group, templates)

    # ------------------------------------------------ what the engine asks

    def options(self, groups):
        """(group, template) of every template in the groups."""
        if groups not in self._options:
            self._options[groups] = [
                (group, template) for group in groups for template in self.groups[group]
            ]
        return self._options[groups]

    def topics(self, section):
        """The names of the groups in a section of the lexicon."""
        return self._topics[section]

    def needs(self, group):
        """The slots that the group's templates take as settled."""
        return self._needs[group]

    def pattern(self, cls, language, form):
        """A regular expression for any word of the class in this form."""
        key = cls, language, form
        if key not in self._patterns:
            if cls in ("number", "sequence"):
                pattern = NUMBER if cls == "number" else f"{NUMBER}(?: {NUMBER})*"
            else:
                forms = {item.form(language, form) for item in self.words[cls]}
                forms = sorted(forms, key=lambda word: (-len(word), word))
                pattern = "|".join(map(re.escape, forms))
            edge = r"(?![A-Za-z0-9])" if language == "en" else ""
            self._patterns[key] = re.compile(f"(?:{pattern}){edge}")
        return self._patterns[key]

    def begins(self, cls, language, form, text):
        """Is this text the beginning of a word of the class, or empty?"""
        if cls in ("number", "sequence"):
            return not text.strip(DIGITS if cls == "number" else DIGITS + " ")
        words = (item.form(language, form) for item in self.words[cls])
        return any(word.startswith(text) for word in words)

    def find(self, cls, language, form, word):
        """The item of the class whose form is this word."""
        if cls == "number":
            return number(int(word))
        if cls == "sequence":
            return sequence(word.split())
        key = cls, language, form
        if key not in self._found:
            self._found[key] = {
                item.form(language, form): item for item in self.words[cls]
            }
        return self._found[key][word]

    # ------------------------------------------------------ the three uses

    def sample(self, seed, program=plots.document, forced=None, language=None):
        """Write the document of this seed (an int or a str)."""
        writer = self.write(seed, program, forced, language)
        return Document(
            writer.text, writer.bits, writer.kind, writer.trace, words_of(writer)
        )

    def write(self, seed, program, forced=None, language=None):
        """Run a program with dice of this seed; the writer holds what came of it."""
        writer = Writer(self, random.Random(seed), forced)
        writer.language = language or next(iter(self.dial["languages"]))
        writer.kind = program.__name__
        program(writer)
        return writer

    def story(self, seed, forced=None, language=None):
        """A story and nothing else; its bits are those of the choices in the story."""
        return self.sample(seed, plots.story, forced, language)

    def conversation(self, seed, split="train", kind=None):
        """The conversation of this seed: see conversations.py."""
        from littleworld.conversations import conversation

        return conversation(self, seed, split, kind)

    def score(self, text):
        """The exact bits of a text, over all derivations; infinite if it has none."""
        derivations = read(plots.document, self, text)
        return add_probabilities(reader.bits for reader in derivations)

    def prefix_bits(self, text):
        """-log2 of the chance that a document begins with this text."""
        beginnings = read(plots.document, self, text, open_end=True)
        return add_probabilities(reader.bits for reader in beginnings)

    def leaves(self, text, lenient=False):
        """The position of the first character with which no document goes on.

        It is len(text) if the text only breaks off.
        """
        held, lost = 0, len(text) + 1  # text[:held] begins a document
        while lost - held > 1:
            middle = (held + lost) // 2
            if read(plots.document, self, text[:middle], lenient, open_end=True):
                held = middle
            else:
                lost = middle
        return held

    def check(self, text):
        """Tell right, inconsistent and ungrammatical apart: see `Verdict`."""
        derivations = read(plots.document, self, text)
        if not derivations:
            derivations = read(plots.document, self, text, lenient=True)
        if not derivations:
            return Verdict(False, False, [], self.leaves(text, lenient=True))
        best = derivations[0]
        right, reached = not best.faults, len(text)
        if not right:
            reached = min(fault.position for fault in best.faults)
        state = words_of(best)
        return Verdict(right, True, best.faults, reached, best.slots, best.kind, state)


def settled_before(template):
    """The slots that a template says but does not draw."""
    slots = {
        role: {part.text for part in template["en"] if part.role == role}
        for role in ("fixed", "draw")
    }
    return slots["fixed"] - slots["draw"]


def words_of(teller):
    """The state of a teller as plain words."""
    return {slot: item.forms["en", "word"] for slot, item in teller.state.items()}


@functools.cache
def default_world():
    return World()


def score(text):
    """`World().score`: the exact bits of a text in the default world."""
    return default_world().score(text)


def check(text):
    """`World().check`: what is wrong with a text in the default world."""
    return default_world().check(text)
