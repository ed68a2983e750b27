"""Where a model's missing bits are: its loss above the floor, by class of token.

The loss of a model on a document is a sum over tokens, and so is the floor: the exact
bits of a token, given all before it, are those of the prefix that ends with it less
those of the prefix before it. Token by token the difference is noise (a model may
guess well); summed over documents it is what the model has not learned.
"""

from typing import NamedTuple

from littleworld import plots
from littleworld.engine import add_probabilities, read


class Token(NamedTuple):
    """A piece of a text: where it is, what it says and its exact bits.

    `label` is "sentence" for wording, a class ("name", "color") where a slot draws it,
    the class and "again" where the text has settled it, "end" for the document's end.
    """

    start: int
    end: int
    label: str
    bits: float


class Excess(NamedTuple):
    """One class of tokens: how many, the bits they need and the bits a model took."""

    label: str
    tokens: int
    floor: float
    model: float


def explain(world, text, ends):
    """The exact bits of every token of a text; `ends` says where each token ends.

    Returns one Token for each, and a last one for the end of the document.
    """
    derivations = read(plots.document, world, text)
    if not derivations:
        raise ValueError(f"not of this world: it leaves it at {world.leaves(text)}")
    if list(ends) != sorted(ends) or not ends or ends[-1] != len(text):
        raise ValueError(f"ends must rise to the text's length, {len(text)}: {ends}")
    slots = [step for step in derivations[0].trace if step.length]
    tokens, start, before, paths = [], 0, 0.0, [()]
    for end in ends:
        bits = before
        if end > start:  # a path that has failed fails for every longer prefix too
            readers = read(plots.document, world, text[:end], False, True, paths)
            paths = [tuple(reader.taken) for reader in readers]
            bits = add_probabilities(reader.bits for reader in readers)
        tokens.append(Token(start, end, label_at(slots, start, end), bits - before))
        start, before = end, bits
    whole = add_probabilities(reader.bits for reader in derivations)
    return [*tokens, Token(start, start, "end", whole - before)]


def label_at(slots, start, end):
    """The label of the slot that the characters from start to end belong to."""
    for step in slots:
        if step.position < end and start < step.position + step.length:
            return step.label if step.first else f"{step.label} again"
    return "sentence"


def excess(world, documents):
    """Compare a model with the floor, by class of token.

    `documents` yields (text, ends, bits): the ends of its tokens and the bits the model
    gave each of them and the end. Returns a row for each class, the largest gap first.
    """
    totals = {}
    for text, ends, model_bits in documents:
        for token, bits in zip(explain(world, text, ends), model_bits, strict=True):
            tokens, floor, model = totals.get(token.label, (0, 0.0, 0.0))
            totals[token.label] = tokens + 1, floor + token.bits, model + bits
    rows = [Excess(label, *total) for label, total in totals.items()]
    return sorted(rows, key=lambda row: row.floor - row.model)
