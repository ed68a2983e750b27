"""The world: the lexicon at one setting of the dial, and what can be done with it."""

import functools
import random
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from littleworld import plots
from littleworld.engine import (
    SPACE,
    Item,
    Step,
    Writer,
    add_probabilities,
    number,
    parse_template,
    read,
    sequence,
)

FOLDER = Path(__file__).parent


@functools.cache
def load(name):
    """A TOML file of this package, read once."""
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


def halves(text):
    """A text of the lexicon as {"en": ..., "zh": ...}."""
    texts = [text] if isinstance(text, str) else text
    return dict(zip(SPACE, texts, strict=False))


def make_item(cls, entry, lexicon):
    """An entry of the lexicon's [words] as an Item."""
    entry = dict(entry) if isinstance(entry, dict) else {"word": entry}
    measures = lexicon.get("measures", {})
    measure = entry.pop("measure", measures.get(cls, measures.get("else")))
    entry |= lexicon.get("pronouns", {}).get(entry.pop("is", None), {})
    forms = {
        (language, form): half
        for form, text in entry.items()
        for language, half in halves(text).items()
    }
    return Item(cls, forms | {("zh", "measure"): measure})


def check_words(cls, items):
    """No word of a class may be, or begin, another: a text could be read two ways."""
    for language, form in sorted({key for item in items for key in item.forms}):
        if form == "measure":
            continue
        forms = {item.forms[language, form] for item in items if item.knows(form)}
        if form == "word" and len(forms) < len(items):
            raise ValueError(f"{cls} has two words that are the same in {language!r}")
        edge = r"(?![A-Za-z0-9])" if language == "en" else ""
        for word in forms:
            begins = re.compile(re.escape(word) + edge)
            for other in forms - {word}:
                if begins.match(other):
                    raise ValueError(
                        f"{word!r} begins {other!r}: both are {cls}.{form}"
                    )


def check_halves(group, templates):
    """The halves of a template must draw the same and have as many free words."""
    for template in templates:
        english, chinese = (
            sorted(
                (part.role, part.cls, len(part.words))
                for part in template.get(language, ())
                if part.role in ("draw", "free")
            )
            for language in ("en", "zh")
        )
        if english != chinese or "zh" not in template:
            raise ValueError(f"the halves of a sentence of {group} do not agree")


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
        lexicon = load("lexicon.toml")
        sizes = self.dial["words"]
        self.words = {
            cls: [make_item(cls, entry, lexicon) for entry in entries[: sizes.get(cls)]]
            for cls, entries in lexicon["words"].items()
        }
        self.groups = {
            f"{section}.{name}": [parse_pair(text) for text in texts]
            for section, groups in lexicon["sentences"].items()
            for name, texts in groups.items()
        }
        self._options, self._patterns, self._found = {}, {}, {}
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

    @functools.cache  # noqa: B019
    def topics(self, section):
        return [
            group.split(".")[1]
            for group in self.groups
            if group.split(".")[0] == section
        ]

    @functools.cache  # noqa: B019
    def needs(self, group):
        """The slots that the group's templates take as settled."""
        return {
            part.text
            for template in self.groups[group]
            for part in template["en"]
            if part.role == "fixed"
        }

    def pattern(self, cls, language, form):
        """A regular expression for any word of the class in this form."""
        key = cls, language, form
        if key not in self._patterns:
            if cls in ("number", "sequence"):
                pattern = r"\d{1,4}" if cls == "number" else r"\d{1,4}(?: \d{1,4})*"
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
            return not text.strip("0123456789" if cls == "number" else "0123456789 ")
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


def words_of(teller):
    """The state of a teller as plain words."""
    return {slot: item.forms["en", "word"] for slot, item in teller.state.items()}


def parse_pair(text):
    """A template's halves as parts: {"en": (...), "zh": (...)}."""
    return {language: parse_template(half) for language, half in halves(text).items()}


def load_dial(dial):
    """The table of a dial given by name, or the table itself."""
    if not isinstance(dial, str):
        return dial
    dials = load("dials.toml")
    if dial not in dials:
        raise ValueError(f"no dial {dial!r}; there are {', '.join(sorted(dials))}")
    return dials[dial]


@functools.cache
def default_world():
    return World()


def score(text):
    """`World().score`: the exact bits of a text in the default world."""
    return default_world().score(text)


def check(text):
    """`World().check`: what is wrong with a text in the default world."""
    return default_world().check(text)
