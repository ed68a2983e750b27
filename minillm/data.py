"""Where text comes from, how it is read, and the lowest loss a model can reach."""

# Generated from notebooks/01_data.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "END_OF_TEXT",
    "FORMATS",
    "HAN",
    "open_bytes",
    "read_lines",
    "decode",
    "parse_row",
    "keep_good",
    "read_jsonl",
    "read_documents",
    "parse_text",
    "read_csv",
    "parse_csv",
    "read_parquet",
    "read_json",
    "suffix_of",
    "read_rows",
    "pick_text",
    "files_in",
    "read_texts",
    "read_public",
    "write_atomic",
    "remove",
    "write_jsonl",
    "summarize",
    "deduplicate",
    "held_out",
    "entropy",
    "compress",
    "bits_per_byte",
]

# %%
import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import shutil
import statistics
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import BinaryIO


# %%
@contextmanager
def open_bytes(path: str | Path, mode: str = "rb") -> Iterator[BinaryIO]:
    """Open a file for bytes; a name that ends in `.gz` is (de)compressed on the way."""
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, mode) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from None


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Numbers from 1 and lines of a file that are not empty, as bytes, without BOM."""
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line := line.rstrip(b"\r\n"):
                yield number, line


# %%
def decode(raw: bytes) -> str:
    """UTF-8 bytes -> text; the error says which byte is wrong, and after what."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[max(0, error.start - 20) : error.start].decode("utf-8", "ignore")
        reason = f"byte 0x{raw[error.start]:02x} after {before!r} is not UTF-8"
        raise ValueError(f"{reason}: save the file as UTF-8") from None


def parse_row(line: bytes) -> dict:
    """One line of a JSONL file -> its object; the error says what is wrong."""
    try:
        row = json.loads(decode(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not a row: its brackets are nested too deeply") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise ValueError(
            f'type {kind}, where an object such as {{"text": ...}} belongs'
        )
    return row


# %%
def keep_good(
    path: str | Path, numbered: Iterable[tuple], parse: Callable, skip: bool = False
) -> Iterator:
    """Parse numbered raw items; a bad one is an error, or counted with `skip`."""
    kept, skipped, first = 0, 0, ""
    for number, raw in numbered:
        try:
            item = parse(raw)
        except ValueError as error:
            message = f"{path}, line {number}: {error}"
            if not skip:
                raise ValueError(message) from None
            skipped, first = skipped + 1, first or message
        else:
            kept += 1
            yield item
    tail = f"; skipped {skipped}, the first: {first}" if skipped else ""
    if not kept:
        raise ValueError(f"{path} holds nothing to read{tail}")
    if skipped:
        print(f"{path}: kept {kept}{tail}", file=sys.stderr)


# %%
def read_jsonl(path: str | Path, skip: bool = False) -> Iterator[dict]:
    """Yield the objects of a JSONL file (`.jsonl` or `.jsonl.gz`), one a line.

    A bad line raises `ValueError` with file, line number and reason; with `skip`,
    bad lines are counted and reported at the end. Empty lines are passed over.
    """
    return keep_good(path, read_lines(path), parse_row, skip)


# %%
END_OF_TEXT = b"<|endoftext|>"


def read_documents(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """First line numbers and documents of a `.txt` file, divided by `<|endoftext|>`.

    A file without such a mark is one document, handed on in pieces of about a
    million bytes, so that a file of any size can be streamed.
    """
    start, piece, size = 1, [], 0
    with open_bytes(path) as file:
        for number, line in enumerate(chain(file, [END_OF_TEXT]), 1):
            head, mark, tail = line.replace(b"\r\n", b"\n").partition(END_OF_TEXT)
            piece.append(head)
            size += len(head)
            if mark or size > 1_000_000:
                if text := b"".join(piece).removeprefix(b"\xef\xbb\xbf").strip(b"\n"):
                    yield start, text
                start, piece, size = number + 1, [tail.lstrip()], len(tail)


def parse_text(raw: bytes) -> dict:
    """One document of a `.txt` file -> the row that a JSONL file would have."""
    return {"text": decode(raw)}


# %%
def read_csv(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Line numbers and rows of a CSV file whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)
    with (
        open_bytes(path) as file,
        io.TextIOWrapper(
            file, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as text,
    ):
        reader = csv.DictReader(text, restkey="(unnamed)")
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def parse_csv(row: dict) -> dict:
    """A row of a CSV file, unless its bytes are not UTF-8 or it has too many cells."""
    if "(unnamed)" in row:
        raise ValueError(f"{len(row['(unnamed)'])} more cells than columns")
    decode("".join(filter(None, row.values())).encode("utf-8", "surrogateescape"))
    return row


# %%
def read_parquet(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Numbers and rows of a Parquet file, a batch in memory at a time."""
    import pyarrow.parquet  # slow to import, and seldom needed

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024)
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from zip(count(1), rows, strict=False)
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a whole Parquet file: {reason}") from None


def read_json(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and objects of a `.json` file: one list, or JSONL under another name."""
    lines = list(read_lines(path))
    if not lines or not lines[0][1].lstrip().startswith(b"["):
        yield from lines
        return
    try:
        rows = json.loads(decode(b"\n".join(line for _, line in lines)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    yield from (
        (number, json.dumps(row).encode()) for number, row in enumerate(rows, 1)
    )


# %%
FORMATS = {  # suffix -> how to find the rows of a file, and how to parse one
    ".jsonl": (read_lines, parse_row),
    ".json": (read_json, parse_row),
    ".csv": (read_csv, parse_csv),
    ".parquet": (read_parquet, dict),
    ".txt": (read_documents, parse_text),
}


def suffix_of(path: str | Path) -> str:
    """The ending that tells the format: that of `a.jsonl.gz` is `.jsonl`."""
    return Path(str(path).removesuffix(".gz")).suffix.lower()


def read_rows(
    path: str | Path, skip: bool = False, pick: Callable = dict
) -> Iterator[dict]:
    """Yield `pick(row)` for every row of a file in any of `FORMATS`, also as `.gz`."""
    if (suffix := suffix_of(path)) not in FORMATS:
        known = " ".join(FORMATS)
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    find, parse = FORMATS[suffix]
    return keep_good(path, find(path), lambda raw: pick(parse(raw)), skip)


# %%
def pick_text(row: dict, column: str = "text") -> str:
    """The text in one column of a row; the error lists the columns that there are."""
    if column not in row:
        there = ", ".join(str(name) for name in row)
        raise ValueError(f"no column {column!r}; the columns are: {there}")
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise ValueError(f"column {column!r} holds type {kind}, where text belongs")
    return row[column]


def files_in(source: str | Path) -> list[Path]:
    """The files that `source` stands for: itself, or all that a folder holds."""
    path = Path(source)
    if not path.is_dir():
        return [path]
    inside = (f for f in path.rglob("*") if f.is_file() and f.name[0] != ".")
    if not (files := sorted(f for f in inside if suffix_of(f) in FORMATS)):
        raise ValueError(f"folder {path} holds no file ending in {' '.join(FORMATS)}")
    return files


# %%
def read_texts(
    source: str | Path, column: str = "text", skip: bool = False
) -> Iterator[str]:
    """Yield documents, one at a time, from a file, a folder or a named public set.

    `source`: a `.txt`, `.jsonl`, `.json`, `.csv` or `.parquet` file, each also as
    `.gz`; a folder of them; or a data set's name on the Hugging Face hub, such as
    `roneneldan/TinyStories`. `column` is where the rows hold their text. With
    `skip`, bad rows are counted and reported instead of raising `ValueError`.
    """
    if not Path(source).exists():
        yield from read_public(str(source), column)
        return
    for path in files_in(source):
        name = "text" if suffix_of(path) == ".txt" else column
        yield from read_rows(
            path, skip, pick=lambda row, name=name: pick_text(row, name)
        )


def read_public(name: str, column: str = "text") -> Iterator[str]:
    """Stream the training split of a named set through `datasets`.

    `owner/set`, or `owner/set:file.jsonl` for one file of a set that has several.
    """
    place, _, file = name.partition(":")
    if place.count("/") != 1 or suffix_of(place) in FORMATS:
        raise FileNotFoundError(f"{name}: no such file or folder")
    from datasets import load_dataset  # slow to import, and seldom needed

    try:
        rows = load_dataset(
            place, data_files=file or None, split="train", streaming=True
        )
    except (OSError, ValueError) as error:
        command = f"minillm data convert {name} {place.split('/')[1]}.jsonl"
        raise ValueError(
            f"{name}: no such file, and no such public set within reach "
            f"({type(error).__name__}); where there is a network, run `{command}`"
        ) from None
    yield from (pick_text(row, column) for row in rows)


# %%
@contextmanager
def write_atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` on success.

    The body may create a file or a folder there. If it raises, or the process is
    interrupted, what it left is removed and an earlier `path` is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    aside = temporary.with_name(f".old-{os.getpid()}-{target.name}")
    remove(temporary)
    try:
        yield temporary
        if target.is_dir():  # a rename replaces a file, but never a filled folder
            target.rename(aside)
        temporary.replace(target)
    finally:
        if aside.exists() and not target.exists():
            aside.rename(target)
        remove(temporary)
        remove(aside)


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# %%
def write_jsonl(rows: Iterable[dict], path: str | Path) -> int:
    """Write one JSON object a line, in UTF-8 and atomically; return how many."""
    written = 0
    with write_atomic(path) as temporary, open_bytes(temporary, "wb") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            file.write(line.encode("utf-8") + b"\n")
            written += 1
    return written


# %%
HAN = re.compile("[\u4e00-\u9fff]")


def summarize(texts: Iterable[str]) -> dict:
    """Count what a corpus holds: documents, bytes, lengths, words, duplicates."""
    seen, words, sizes, num_chars, num_han = Counter(), Counter(), [], 0, 0
    for text in texts:
        seen[hash(text)] += 1
        words.update(text.split())
        sizes.append(len(text.encode("utf-8")))
        num_chars += len(text)
        num_han += 0 if text.isascii() else len(HAN.findall(text))
    if not sizes:
        raise ValueError("there are no documents to summarize")
    return {
        "documents": len(sizes),
        "bytes": sum(sizes),
        "characters": num_chars,
        "shortest": min(sizes),
        "median": int(statistics.median(sizes)),
        "longest": max(sizes),
        "words": sum(words.values()),
        "distinct_words": len(words),
        "duplicates": len(sizes) - len(seen),
        "han_share": num_han / max(num_chars, 1),
        "frequent": [word for word, _ in words.most_common(10)],
    }


# %%
def deduplicate(texts: Iterable[str]) -> Iterator[str]:
    """Yield every text the first time it comes; of each, only a digest is kept."""
    seen = set()
    for text in texts:
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            yield text


def held_out(text: str, share: float = 0.01, salt: str = "") -> bool:
    """Whether a text belongs to the validation split: its own digest decides.

    So a repeated text never stands on both sides, on any machine and in any order.
    """
    digest = hashlib.blake2b((salt + text).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


# %%
def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy, in bits, of the distribution that `counts` describe."""
    counts = [count for count in counts if count]
    total = sum(counts)
    return math.log2(total) - sum(n * math.log2(n) for n in counts) / total


# %%
def compress(texts: Iterable[str]) -> dict[str, float]:
    """Bits per byte of a corpus, by byte counts, by pairs, and by three compressors.

    `order-0` and `bigram` count on the text itself and store no table: lower bounds of
    what such a model takes. zlib, bz2 and xz are real files, everything included.
    """
    data = "\n".join(texts).encode("utf-8")
    if len(data) < 2:
        raise ValueError("there is no text to compress")
    pairs = entropy(Counter(zip(data, data[1:], strict=False)).values())
    packers = {"zlib": zlib.compress, "bz2": bz2.compress, "xz": lzma.compress}
    sizes = {name: 8 * len(pack(data)) / len(data) for name, pack in packers.items()}
    counted = {"order-0": entropy(Counter(data).values())}
    counted["bigram"] = pairs - entropy(Counter(data[:-1]).values())  # given the first
    return counted | sizes


# %%
def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total loss in nats over total UTF-8 bytes of the text -> bits per byte."""
    if num_bytes <= 0:
        raise ValueError(f"{num_bytes=}: there is no text to divide by")
    return nats / math.log(2) / num_bytes
