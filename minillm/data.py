"""Where text comes from, how it is read, and the lowest loss a model can reach."""

# Generated from notebooks/01_data.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "END_OF_TEXT",
    "READERS",
    "write_atomic",
    "remove",
    "write_jsonl",
    "open_bytes",
    "Rejects",
    "read_lines",
    "decode",
    "parse_row",
    "read_jsonl",
    "read_txt",
    "pick_column",
    "read_csv",
    "read_parquet",
    "read_json",
    "suffix_of",
    "read_rows",
    "read_files",
    "read_texts",
    "read_public",
    "bits_per_byte",
    "summarize",
]

# %%
import csv
import gzip
import json
import math
import os
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path


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
    count = 0
    with write_atomic(path) as temporary, open_bytes(temporary, "wb") as file:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            file.write(line.encode("utf-8") + b"\n")
            count += 1
    return count


def open_bytes(path: str | Path, mode: str = "rb"):
    """Open a file for bytes; a name that ends in `.gz` is (de)compressed on the way."""
    return gzip.open(path, mode) if str(path).endswith(".gz") else open(path, mode)


# %%
class Rejects:
    """Raise at the first bad line, or count them all and report at the end."""

    def __init__(self, path: str | Path, skip: bool = False):
        self.path, self.skip, self.count, self.first = path, skip, 0, ""

    def add(self, line: int, reason: str) -> None:
        message = f"{self.path}, line {line}: {reason}"
        if not self.skip:
            raise ValueError(message)
        self.count += 1
        self.first = self.first or message

    def finish(self, kept: int) -> None:
        if not kept:
            raise ValueError(f"{self.path} holds nothing to read{self.tail()}")
        if self.count:
            print(f"{self.path}: kept {kept} rows{self.tail()}", file=sys.stderr)

    def tail(self) -> str:
        return f"; skipped {self.count}, first: {self.first}" if self.count else ""


# %%
def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and lines of a file as bytes, without BOM and line ends."""
    with open_bytes(path) as file:
        try:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                yield number, line.rstrip(b"\r\n")
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged or cut short: {error}") from None


def decode(line: bytes) -> str:
    """UTF-8 bytes -> text; the error says which byte is wrong and where."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong, place = line[error.start], error.start + 1
        reason = f"not UTF-8 (byte 0x{wrong:02x} at place {place}): save it as UTF-8"
        raise ValueError(reason) from None


def parse_row(line: bytes) -> dict:
    """One line of a JSONL file -> its object; the error says what is wrong."""
    try:
        row = json.loads(decode(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise ValueError(f'a {kind}, where an object such as {{"text": ...}} belongs')
    return row


def read_jsonl(path: str | Path, skip: bool = False) -> Iterator[dict]:
    """Yield the objects of a JSONL file (`.jsonl` or `.jsonl.gz`), one a line.

    A bad line raises `ValueError` with file, line number and reason; with `skip`,
    bad lines are counted and reported at the end. Empty lines are passed over.
    """
    rejects, kept = Rejects(path, skip), 0
    for number, line in read_lines(path):
        if line.strip():
            try:
                row = parse_row(line)
            except ValueError as error:
                rejects.add(number, str(error))
            else:
                kept += 1
                yield row
    rejects.finish(kept)


# %%
END_OF_TEXT = "<|endoftext|>"


def read_txt(path: str | Path, skip: bool = False) -> Iterator[str]:
    """Documents of a `.txt` file: what stands between lines of `<|endoftext|>`.

    A file without such a mark is one document, handed on in pieces of about a
    million characters so that a file of any size can be streamed.
    """
    rejects, kept, piece, size = Rejects(path, skip), 0, [], 0
    for number, line in chain(read_lines(path), [(0, END_OF_TEXT.encode())]):
        try:
            head, mark, tail = decode(line).partition(END_OF_TEXT)
        except ValueError as error:
            rejects.add(number, str(error))
            continue
        piece.append(head)
        size += len(head) + 1
        if mark or size > 1_000_000:
            text = "\n".join(piece).strip("\n")
            piece, size = ([tail] if tail else []), len(tail)
            if text:
                kept += 1
                yield text
    rejects.finish(kept)


# %%
def pick_column(row: dict, column: str) -> str:
    """The text in one column of a row; the error lists the columns that there are."""
    if column not in row:
        there = ", ".join(str(name) for name in row)
        raise ValueError(f"no column {column!r}; the columns are: {there}")
    if not isinstance(row[column], str):
        kind = type(row[column]).__name__
        raise ValueError(f"column {column!r} holds a {kind}, where text belongs")
    return row[column]


def read_csv(path: str | Path) -> Iterator[dict]:
    """Rows of a CSV file whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)
    lines = (decode(line) + "\n" for _, line in read_lines(path))
    yield from csv.DictReader(lines, restkey="(unnamed)")


def read_parquet(path: str | Path) -> Iterator[dict]:
    """Rows of a Parquet file, a batch in memory at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a whole Parquet file: {reason}") from None


def read_json(path: str | Path) -> Iterator[dict]:
    """Rows of a `.json` file: a list of objects, or JSONL under another name."""
    first = next((line for _, line in read_lines(path) if line.strip()), b"")
    if not first.lstrip().startswith(b"["):
        yield from read_jsonl(path)
        return
    try:
        yield from json.loads(b"\n".join(line for _, line in read_lines(path)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON: {error}") from None


# %%
READERS: dict[str, Callable[[Path], Iterator[dict]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def suffix_of(path: str | Path) -> str:
    """The ending that tells the format: that of `a.jsonl.gz` is `.jsonl`."""
    return Path(str(path).removesuffix(".gz")).suffix.lower()


def read_rows(path: str | Path, skip: bool = False) -> Iterator[dict]:
    """Rows of a `.jsonl`, `.json`, `.csv`, `.parquet` or `.txt` file, as dicts."""
    suffix = suffix_of(path)
    if suffix == ".jsonl":
        return read_jsonl(path, skip)
    if suffix == ".txt":
        return ({"text": text} for text in read_txt(path, skip))
    if suffix not in READERS:
        known = " ".join([*READERS, ".txt"])
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    return READERS[suffix](Path(path))


# %%
def read_files(source: str | Path) -> list[Path]:
    """The files that `source` stands for: itself, or all that a folder holds."""
    path = Path(source)
    if not path.is_dir():
        return [path]
    known = {*READERS, ".txt"}
    inside = (f for f in path.rglob("*") if f.is_file() and f.name[0] != ".")
    if not (files := sorted(f for f in inside if suffix_of(f) in known)):
        raise ValueError(f"folder {path} holds no file ending in {' '.join(known)}")
    return files


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
    for path in read_files(source):
        rejects, kept = Rejects(path, skip), 0
        for number, row in enumerate(read_rows(path, skip), 1):
            try:
                text = pick_column(row, column if suffix_of(path) != ".txt" else "text")
            except ValueError as error:
                rejects.add(number, str(error))
            else:
                kept += 1
                yield text
        rejects.finish(kept)


# %%
def read_public(name: str, column: str = "text") -> Iterator[str]:
    """Stream the training split of a named data set through `datasets`."""
    if name.count("/") != 1 or suffix_of(name) in {*READERS, ".txt"}:
        raise FileNotFoundError(f"{name}: no such file or folder")
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split="train", streaming=True)
    except (OSError, ValueError) as error:
        command = f"minillm data convert {name} {name.split('/')[1]}.jsonl"
        raise ValueError(
            f"{name}: no such file, and no such public set within reach "
            f"({type(error).__name__}); where there is a network, run `{command}`"
        ) from None
    for row in rows:
        yield pick_column(row, column)


# %%
def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total loss in nats over total UTF-8 bytes of the text -> bits per byte."""
    if num_bytes <= 0:
        raise ValueError(f"{num_bytes=}: there is no text to divide by")
    return nats / math.log(2) / num_bytes


def summarize(texts: Iterable[str]) -> dict:
    """Count what a corpus holds: documents, bytes, lengths, words, duplicates."""
    seen, words, sizes, num_chars, num_han = Counter(), Counter(), [], 0, 0
    for text in texts:
        seen[hash(text)] += 1
        words.update(text.split())
        sizes.append(len(text.encode("utf-8")))
        num_chars += len(text)
        num_han += sum("\u4e00" <= char <= "\u9fff" for char in text)
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
