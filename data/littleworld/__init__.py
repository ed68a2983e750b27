"""Little World: a corpus whose true entropy is known, made by one small program."""

from littleworld.conversations import judge
from littleworld.corpus import write_corpus
from littleworld.world import Document, Verdict, World, check, score

__all__ = ["Document", "Verdict", "World", "check", "judge", "score", "write_corpus"]
