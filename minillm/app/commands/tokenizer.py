"""`minillm tokenizer`: learn a vocabulary, encode with it, look into it."""

import sys
from itertools import islice
from pathlib import Path

from minillm.app.console import say
from minillm.app.inputs import data_source, open_tokenizer
from minillm.support.sources import read_texts
from minillm.support.token_files import write_tokens
from minillm.tokenizer import train_bpe


def train_tokenizer(
    data: str = "runs/data/train.jsonl",
    output: Path = Path("runs/tokenizer"),
    vocab_size: int = 896,
    column: str = "text",
    limit: int | None = None,
):
    """Learn a vocabulary from a corpus by byte-pair encoding.

    Args:
        data: where the texts are
        output: folder for tokenizer.json and its companions
        vocab_size: how many tokens: 3 special ones, 256 bytes, the rest merges
        column: the column that holds the text
        limit: learn only from this many texts, the first ones
    """
    texts = islice(read_texts(data_source(data), column), limit)
    tokenizer = train_bpe(texts, vocab_size, progress=sys.stderr.isatty())
    tokenizer.save_pretrained(output)
    say(f"{output}: {tokenizer.vocab_size} tokens; next: minillm pretrain")


def encode_text(
    text: str,
    tokenizer: Path = Path("runs/tokenizer"),
    output: Path | None = None,
    column: str = "text",
):
    """Show a text as tokens: how it is cut, and the numbers. Or encode a corpus.

    Args:
        text: what to encode; with --output a file, a folder or a public set
        tokenizer: a tokenizer's folder or file
        output: write the corpus here as one array of numbers, in a .npy file
        column: the column that holds the text
    """
    opened = open_tokenizer(tokenizer)
    if output:
        facts = write_tokens(read_texts(text, column), opened, output)
        say(f"{output}: {facts['tokens']} tokens, {facts['documents']} documents")
        return
    ids = opened.encode(text)
    say(" ".join(str(number) for number in ids))
    say("|".join(opened.decode([number]) for number in ids))
    say(f"{len(ids)} tokens, {len(text.encode())} bytes")


def inspect_tokenizer(tokenizer: Path = Path("runs/tokenizer"), last: int = 20):
    """Say what is in a tokenizer: size, special tokens, last merges.

    Args:
        tokenizer: a tokenizer's folder or file
        last: how many of the last tokens to show
    """
    opened = open_tokenizer(tokenizer)
    say(f"vocab_size       {opened.vocab_size}")
    for name, number in opened.special_tokens.items():
        say(f"{name:16} {number}")
    tail = range(max(0, opened.vocab_size - last), opened.vocab_size)
    shown = " ".join(repr(opened.decode([number])) for number in tail)
    say(f"the last tokens  {shown}")
