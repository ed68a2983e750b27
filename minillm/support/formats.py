"""Texts from files: plain text, JSON Lines, CSV, Parquet; each also as `.gz`."""

import csv
import gzip
import io
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from minillm.support.files import write_atomic

BOM = b"\xef\xbb\xbf"  # the mark that Windows programs put before UTF-8
END_OF_TEXT = "<|endoftext|>"
UTF8 = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}
MAX_LINE = 16_000_000  # bytes: a longer line is not a row, and would fill the memory
PIECE = 1_000_000  # characters of a long document that are yielded at a time


def web_files(silence: float = 30):
    """The `fsspec` file system of http(s) addresses; `silence` seconds are an error."""
    from aiohttp import ClientTimeout  # slow to import, and seldom needed
    from fsspec import filesystem

    limits = ClientTimeout(total=None, sock_connect=silence, sock_read=silence)
    plain = {"headers": {"Accept-Encoding": "identity"}, "auto_decompress": False}
    return filesystem(
        "http", client_kwargs={"timeout": limits, "trust_env": True} | plain
    )


@contextmanager
def _open_address(address: str) -> Iterator[BinaryIO]:
    """Stream the bytes at a web address; a connection that breaks off is an error."""
    from aiohttp import ClientError

    try:
        with web_files().open(address, block_size=0) as stream:
            yield io.BufferedReader(stream, 1 << 16)
    except (ClientError, TimeoutError) as error:
        raise EOFError(f"the connection broke off ({type(error).__name__})") from None


@contextmanager
def open_bytes(path: str | Path, mode: str = "rb") -> Iterator[BinaryIO]:
    """Open a file or a web address for bytes; those of a `.gz` are (de)compressed."""
    raw = _open_address(path) if "://" in str(path) else open(path, mode)
    packed = str(path).endswith(".gz")
    try:
        with raw as file, gzip.open(file, mode) if packed else nullcontext(file) as out:
            yield out
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from None


def _decode(raw: bytes | str) -> str:
    """Bytes, or text that was read as `UTF8` -> text; the error names a bad byte."""
    raw = raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogateescape")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[max(0, error.start - 20) : error.start].decode("utf-8", "ignore")
        reason = f"byte 0x{raw[error.start]:02x} after {before!r} is not UTF-8"
        raise ValueError(f"{reason}: save the file as UTF-8") from None


def _read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and lines that are not empty; of one over `MAX_LINE`, the beginning."""
    with open_bytes(path) as file:
        for number in count(1):
            if not (line := file.readline(MAX_LINE + 1)):
                return
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(65_536)) and not rest.endswith(b"\n"):
                    pass  # skip to the end of this line
            if line := line.removeprefix(BOM).rstrip(b"\r\n"):
                yield number, line


def parse_json(raw: bytes, longest: int = MAX_LINE) -> object:
    """The value that a JSON text describes; the error says what is wrong, and where."""
    if len(raw) > longest:
        raise ValueError(f"longer than {longest // 10**6} MB: is this JSON Lines?")
    try:
        return json.loads(_decode(raw))
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        reason = error.msg.removesuffix(" at")  # as some of them end
        raise ValueError(f"not JSON: {reason} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _parse_row(raw: object) -> dict:
    """A line of a JSONL file, or an item of a list -> its object, if it is one."""
    row = parse_json(raw) if isinstance(raw, bytes) else raw
    if not isinstance(row, dict):
        kind = f"type {type(row).__name__}"
        raise ValueError(f'{kind}, where an object such as {{"text": ...}} belongs')
    return row


def keep_good(
    path: str | Path, numbered: Iterable[tuple], parse: Callable, skip: bool = False
) -> Iterator:
    """Parse raw items, each with a line number or a place such as "item 3".

    A bad one raises `ValueError`; with `skip`, it is counted and reported at the end.
    """
    kept, skipped, first = 0, 0, ""
    for number, raw in numbered:
        try:
            item = parse(raw)
        except ValueError as error:
            where = number if isinstance(number, str) else f"line {number}"
            message = f"{path}, {where}: {error}"
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


def read_jsonl(path: str | Path, skip: bool = False) -> Iterator[dict]:
    """Yield the objects of a JSONL file, one a line: as `keep_good`, no empty line."""
    return keep_good(path, _read_lines(path), _parse_row, skip)


def _read_documents(path: str | Path) -> Iterator[tuple[int, str]]:
    """First lines and documents of a `.txt` file; a long one is yielded in pieces."""
    number, rest = 1, ""
    with open_bytes(path) as raw, io.TextIOWrapper(raw, **UTF8) as file:
        for block in chain(iter(lambda: file.read(PIECE), ""), [END_OF_TEXT]):
            *texts, rest = (rest + block).split(END_OF_TEXT)
            while len(rest) > PIECE + len(END_OF_TEXT):  # a mark may have begun
                cut = rest.rfind("\n", 0, PIECE) + 1 or rest.rfind(" ", 0, PIECE) + 1
                texts.append(rest[: cut or PIECE])
                rest = rest[cut or PIECE :]
            for text in texts:
                first = number + text[: len(text) - len(text.lstrip())].count("\n")
                number += text.count("\n")
                if text := text.replace("\r\n", "\n").strip("\n"):
                    yield first, text


def _read_csv(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Line numbers and rows of a CSV file whose first line names the columns."""
    csv.field_size_limit(MAX_LINE - 1)  # a longer line is cut, and so an error
    with open_bytes(path) as raw, io.TextIOWrapper(raw, **UTF8) as file:
        lines = iter(lambda: file.readline(MAX_LINE), "")
        reader = csv.DictReader(lines, restkey="(unnamed)")
        try:
            yield from ((reader.line_num, row) for row in reader)
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None


def _parse_csv(row: dict) -> dict:
    """A row of a CSV file, unless its bytes are not UTF-8 or it has too many cells."""
    if "(unnamed)" in row:
        raise ValueError(f"{len(row['(unnamed)'])} more cells than columns")
    _decode("".join(filter(None, row.values())))
    return row


def _read_parquet(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Numbers and rows of a Parquet file, a batch in memory at a time."""
    import pyarrow.parquet  # slow to import, and seldom needed

    try:
        with open_bytes(path) as file, TemporaryFile() as copy:
            if "://" in str(path):  # its table of contents is at its end
                shutil.copyfileobj(file, copy)
                file = copy
            batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a whole Parquet file: {reason}") from None


def _read_list(path: str | Path) -> Iterator[tuple[int | str, object]]:
    """Numbers and items of a `.json` file: one list, or JSONL under another name."""
    with open_bytes(path) as file:
        data = file.read(100)
        if not data.removeprefix(BOM).lstrip().startswith(b"["):
            yield from _read_lines(path)
            return
        data += file.read()
    try:
        items = parse_json(data.removeprefix(BOM), longest=len(data))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    yield from ((f"item {number}", item) for number, item in enumerate(items, 1))


FORMATS = {  # suffix -> how to find the rows of a file, and how to parse one
    ".jsonl": (_read_lines, _parse_row),
    ".json": (_read_list, _parse_row),
    ".csv": (_read_csv, _parse_csv),
    ".parquet": (_read_parquet, dict),
    ".txt": (_read_documents, lambda text: {"text": _decode(text)}),
}


def suffix_of(path: str | Path) -> str:
    """The ending that tells the format: that of `a.jsonl.gz` is `.jsonl`."""
    return Path(str(path).removesuffix(".gz")).suffix.lower()


def format_of(path: str | Path) -> tuple[Callable, Callable]:
    """The entry of `FORMATS` for a file; the error lists what can be read."""
    if (suffix := suffix_of(path)) not in FORMATS:
        known = " ".join(FORMATS)
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    return FORMATS[suffix]


def read_rows(path: str | Path, skip: bool = False, pick: Callable = dict) -> Iterator:
    """Yield `pick(row)` for every row of a file in any of `FORMATS`, also as `.gz`."""
    find, parse = format_of(path)
    return keep_good(path, find(path), lambda raw: pick(parse(raw)), skip)


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
    """`source` itself, or, if it is a folder, all files in it that can be read."""
    path = Path(source)
    if not path.is_dir():
        return [path]
    inside = (f for f in path.rglob("*") if f.is_file() and f.name[0] != ".")
    if not (files := sorted(f for f in inside if suffix_of(f) in FORMATS)):
        raise ValueError(f"folder {path} holds no file ending in {' '.join(FORMATS)}")
    return files


def write_jsonl(rows: Iterable[dict], path: str | Path) -> int:
    """Write one JSON object a line, in UTF-8 and atomically; return how many."""
    written = 0
    with write_atomic(path) as temporary, open_bytes(temporary, "wb") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")
            written += 1
    return written
