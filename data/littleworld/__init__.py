"""Little World: a corpus whose true entropy is known, made by one small program."""

from littleworld.conversations import judge
from littleworld.corpus import write_corpus
from littleworld.excess import excess, explain
from littleworld.preferences import preference
from littleworld.world import Document, Verdict, World, check, score

__all__ = [
    "Document",
    "Verdict",
    "World",
    "check",
    "excess",
    "explain",
    "judge",
    "preference",
    "score",
    "write_corpus",
]
