"""Ways to spoil a document, to measure what the checker notices.

Each takes (world, document, dice) and returns another text, or None if the document
has nothing to be spoilt in this way.
"""

import re


def pick(rng, options):
    """One of the options; only rng.random() is promised to repeat everywhere."""
    return options[int(rng.random() * len(options))]


def settled_steps(document, labels):
    """The places where the document says again what it has settled."""
    return [s for s in document.trace if not s.first and s.label in labels]


def put(text, step, word):
    """The text with this word in the place of the step's."""
    return text[: step.position] + word + text[step.position + step.length :]


def said(document, step):
    return document.text[step.position : step.position + step.length]


def wrong_word(world, document, rng):
    """Another word of the class where the document settles the word."""
    if not (steps := settled_steps(document, world.words)):
        return None
    step = pick(rng, steps)
    for language in ("en", "zh"):
        words = [item.form(language) for item in world.words[step.label]]
        if said(document, step) in words:
            words.remove(said(document, step))
            return put(document.text, step, pick(rng, words))
    return None


def wrong_number(world, document, rng):
    """Another result, count or rest."""
    if not (steps := settled_steps(document, {"number"})):
        return None
    step = pick(rng, steps)
    return put(document.text, step, str(int(said(document, step)) + pick(rng, (1, 2))))


def missing_letter(world, document, rng):
    """A letter is missing."""
    places = [match.start() for match in re.finditer(r"[a-z一-鿿]", document.text)]
    place = pick(rng, places) if places else len(document.text) - 1
    return document.text[:place] + document.text[place + 1 :]


def sentences(text):
    return re.findall(r".+?(?:[.!?]\"?|[。！？]”?)(?=[A-Z\"\s“]|[一-鿿]|$)\s*", text)


def missing_sentence(world, document, rng):
    """A sentence from the middle is missing."""
    parts = sentences(document.text)
    if document.kind != "story" or len(parts) < 3:
        return None
    del parts[1 + int(rng.random() * (len(parts) - 2))]
    return "".join(parts).strip()


def swapped_sentences(world, document, rng):
    """Two sentences that follow each other change places."""
    parts = [part.strip() for part in sentences(document.text)]
    if document.kind != "story" or len(parts) < 2:
        return None
    place = int(rng.random() * (len(parts) - 1))
    parts[place : place + 2] = parts[place + 1], parts[place]
    return (" " if document.text.isascii() else "").join(parts)


MUTATIONS = (
    wrong_word,
    wrong_number,
    missing_letter,
    missing_sentence,
    swapped_sentences,
)
