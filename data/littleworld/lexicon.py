"""The lexicon and the dials: two files for a teacher to edit, read and checked here."""

import functools
import re
import tomllib
from pathlib import Path

from littleworld.engine import SPACE, Item, parse_template

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
    if wrong := dial.keys() ^ dials["small"].keys():
        raise ValueError(
            f"a dial has the keys of 'small'; see {', '.join(sorted(wrong))}"
        )
    return dial
