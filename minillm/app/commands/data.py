"""`minillm data`: make a corpus, inspect one, convert and split texts."""

from itertools import islice
from pathlib import Path

from tqdm import tqdm

from minillm import data
from minillm.app.console import say
from minillm.app.plugins import find_object
from minillm.support.formats import files_in, write_jsonl
from minillm.support.sources import read_texts


def make_data(
    generator: str = "littleworld:write_corpus",
    output: Path = Path("runs/data"),
    documents: int | None = None,
    conversations: int | None = None,
    dial: str | None = None,
    seed: int | None = None,
):
    """Write a corpus: texts to train on and to validate with, conversations.

    Args:
        generator: module:function that is called with the folder and the options below
        output: folder to write to
        documents: how many texts; null leaves this and the rest to the generator
        conversations: how many conversations
        dial: size of the world
        seed: where the random numbers start
    """
    function = find_object(generator)
    amounts = {"documents": documents, "conversations": conversations}
    for name, value in amounts.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} makes nothing; ask for 1 or more")
    options = {**amounts, "dial": dial, "seed": seed}
    given = {key: value for key, value in options.items() if value is not None}
    say(f"{generator} writes to {output} ...")
    try:
        function(output, **given)
    except OSError as error:
        error.filename = error.filename or str(output)  # a full disk names no file
        raise
    for path in files_in(output):
        say(f"{path}  {path.stat().st_size / 1e3:,.0f} kB")
    say("next: minillm tokenizer train")


def inspect_data(
    source: str,
    column: str = "text",
    skip: bool = False,
    other: str | None = None,
    near: float | None = None,
):
    """Say what is in a corpus: lengths, words, repeats, how far it compresses.

    Args:
        source: file (.txt .jsonl .json .csv .parquet), folder, address or public set
        column: the column that holds the text
        skip: count bad rows instead of stopping at the first
        other: a second corpus, such as the validation file: how many texts are in both
        near: count texts that are at least this similar to an earlier one, such as 0.8
    """
    stream = read_texts(source, column, skip)
    texts, count, size = data.sample_texts(tqdm(stream, unit=" texts", disable=None))
    if len(texts) < count:
        say(f"{'in all':16} {count} texts, {size} bytes")
        say(f"{'sampled':16} {len(texts)} texts, by their digests; of these:\n")
    describe_texts(texts, near)
    if other:
        both = sum(map(set(texts).__contains__, read_texts(other, column, skip)))
        within = " are in the sample" if len(texts) < count else ""
        say(f"{'in both':16} {both} texts of {other}{within}")
    say("\nthe first three texts:")
    for text in texts[:3]:
        text = text if len(text) < 300 else text[:300] + " ..."
        say("  " + text.replace("\n", "\n  "))


def describe_texts(texts: list[str], near: float | None) -> None:
    """Print what is counted in these texts."""
    for name, value in data.summarize(texts).items():
        shown = value if isinstance(value, int | float) else " ".join(value)
        say(f"{name:16} {shown}")
    for name, value in data.diversity(texts).items():
        say(f"{'distinct ' + name:16} {value:.3f}")
    if near:
        left_out = len(texts) - sum(1 for _ in data.deduplicate(texts, near))
        say(f"{'near duplicates':16} {left_out}, alike by {near} or more")
    for name, bits in data.compress(texts).items():
        say(f"{name:16} {bits:.3f} bits per byte")


def convert_data(
    source: str,
    target: Path,
    column: str = "text",
    skip: bool = False,
    distinct: bool = False,
    near: float | None = None,
    limit: int | None = None,
):
    """Read texts in any format and write them as JSONL.

    Args:
        source: file (.txt .jsonl .json .csv .parquet), folder, address or public set
        target: the .jsonl or .jsonl.gz file to write
        column: the column that holds the text
        skip: count bad rows instead of stopping at the first
        distinct: leave out texts that came before
        near: leave out texts that are this similar to one that came before, such as 0.8
        limit: stop after this many texts
    """
    texts = islice(read_texts(source, column, skip), limit)
    texts = data.deduplicate(texts, near) if distinct or near else texts
    rows = ({"text": text} for text in tqdm(texts, unit=" texts", disable=None))
    say(f"{target}: {write_jsonl(rows, target)} texts")


def split_data(
    source: str,
    output: Path = Path("runs/data"),
    column: str = "text",
    skip: bool = False,
    share: float = 0.01,
):
    """Read texts in any format and write train.jsonl and validation.jsonl.

    Args:
        source: file (.txt .jsonl .json .csv .parquet), folder, address or public set
        output: folder to write to
        column: the column that holds the text
        skip: count bad rows instead of stopping at the first
        share: how much is held out for validation
    """
    for name, wanted in (("train", False), ("validation", True)):
        texts = read_texts(source, column, skip)
        rows = ({"text": t} for t in texts if data.held_out(t, share) == wanted)
        path = output / f"{name}.jsonl"
        if not (number := write_jsonl(rows, path)):
            raise ValueError(f"{share=} leaves no text for {path}; choose another")
        say(f"{path}: {number} texts")
