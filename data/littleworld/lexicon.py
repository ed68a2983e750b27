"""The lexicon and the dials: two files for a teacher to edit, read and checked here."""

import functools
import hashlib
import itertools
import re
import tomllib
from pathlib import Path

from littleworld.engine import SPACE, Item, parse_template

FOLDER = Path(__file__).parent
OPTIONAL = {"composed", "more", "tailed"}  # keys that a dial may leave out


@functools.cache
def load(name):
    """A TOML file of this package, read once."""
    return tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))


def halves(text):
    """A text of the lexicon as {"en": ..., "zh": ...}."""
    texts = [text] if isinstance(text, str) else text
    return dict(zip(SPACE, texts, strict=False))


def load_lexicon(dial):
    """lexicon.toml and what the file adds that the dial names as `more`."""
    lexicon = load("lexicon.toml")
    if "more" not in dial:
        return lexicon
    more = load(dial["more"])
    words = {**lexicon["words"], **more["words"]}
    for cls, rule in more["made"].items():
        words[cls] = [*words[cls], *make_words(cls, rule, words)]
    sentences = dict(lexicon["sentences"])
    for section, groups in more["sentences"].items():
        sentences[section] = {**sentences.get(section, {}), **groups}
    return {**lexicon, "words": words, "sentences": sentences}


def make_words(cls, rule, words):
    """Every front with every back in each pattern, in an order fixed by digests."""
    known = {half for entry in words[cls] for half in halves(word_of(entry)).values()}
    made = []
    for front, back, pattern in itertools.product(
        rule["front"], rule["back"], rule["pattern"]
    ):
        parts = zip(pattern["word"], front, back["word"], strict=True)
        entry = {**back, **pattern, "word": [p.format(f + b) for p, f, b in parts]}
        for form, classes in rule.get("knows", {}).items():
            options = [word_of(one) for name in classes for one in words[name]]
            number = int.from_bytes(digest(f"{entry['word'][0]}/{form}")[:8], "big")
            entry[form] = options[number % len(options)]
        if not known & set(entry["word"]):
            made.append(entry)
    return sorted(made, key=lambda entry: digest(entry["word"][0]))


def digest(text):
    """The same bytes for the same text, on every machine."""
    return hashlib.sha256(text.encode()).digest()


def word_of(entry):
    """The word of an entry of the lexicon, which may be a table."""
    return entry["word"] if isinstance(entry, dict) else entry


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
    """The halves must draw the same, and have free words in the same order."""
    for template in templates:
        english, chinese = (
            (
                sorted(part.cls for part in parts if part.role == "draw"),
                [len(part.words) for part in parts if part.role == "free"],
            )
            for parts in (template.get("en", ()), template.get("zh", ()))
        )
        if english != chinese or "zh" not in template:
            raise ValueError(f"the halves of a sentence of {group} do not agree")


def parse_pair(text):
    """A template's halves as parts: {"en": (...), "zh": (...)}."""
    return {language: parse_template(half) for language, half in halves(text).items()}


def load_dial(dial):
    """The table of a dial given by name, or the table itself if nothing is missing."""
    dials = load("dials.toml")
    if isinstance(dial, str):
        if dial not in dials:
            raise ValueError(f"no dial {dial!r}; there are {', '.join(sorted(dials))}")
        return dials[dial]
    if wrong := (dial.keys() - OPTIONAL) ^ dials["small"].keys():
        raise ValueError(
            f"a dial has the keys of 'small'; see {', '.join(sorted(wrong))}"
        )
    return dial
