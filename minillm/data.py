"""Where text comes from, how it is read, and the lowest loss a model can reach."""

# Generated from notebooks/01_data.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "MAX_LINE",
    "END_OF_TEXT",
    "PIECE",
    "FORMATS",
    "HUB",
    "HAN",
    "WORD",
    "SAMPLE",
    "Download",
    "open_bytes",
    "decode",
    "read_lines",
    "parse_json",
    "parse_row",
    "keep_good",
    "read_jsonl",
    "last_break",
    "parse_text",
    "read_documents",
    "read_csv",
    "parse_csv",
    "read_parquet",
    "read_json",
    "suffix_of",
    "format_of",
    "read_rows",
    "pick_text",
    "files_in",
    "read_texts",
    "read_public",
    "write_atomic",
    "remove",
    "write_jsonl",
    "open_public",
    "add_rows",
    "save_place",
    "sha256_of",
    "go_on",
    "fetch_rows",
    "summarize",
    "NearDuplicates",
    "deduplicate",
    "diversity",
    "held_out",
    "sample_texts",
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
from contextlib import contextmanager, nullcontext, suppress
from http.client import HTTPException
from itertools import chain, count, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.request import Request, urlopen


# %%
class Download(io.RawIOBase):
    """The bytes at a web address, as a file; one that breaks off is an error."""

    def __init__(self, address: str):
        self.response = urlopen(address, timeout=30)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self.response.readinto(buffer)
        if not count and self.response.length:  # how much is still to come
            raise EOFError("the connection broke off")
        return count


@contextmanager
def open_bytes(path: str | Path, mode: str = "rb") -> Iterator[BinaryIO]:
    """Open a file or a web address for bytes; those of a `.gz` are (de)compressed."""
    web = "://" in str(path)
    raw = io.BufferedReader(Download(path)) if web else open(path, mode)
    packed = str(path).endswith(".gz")
    try:
        with raw, gzip.open(raw, mode) if packed else nullcontext(raw) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from None


def decode(raw: bytes) -> str:
    """UTF-8 bytes -> text; the error says which byte is wrong, and after what."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[max(0, error.start - 20) : error.start].decode("utf-8", "ignore")
        reason = f"byte 0x{raw[error.start]:02x} after {before!r} is not UTF-8"
        raise ValueError(f"{reason}: save the file as UTF-8") from None


# %%
MAX_LINE = 16_000_000  # bytes: a longer line is no row, and would fill the memory


def read_lines(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """Numbers from 1 and lines of a file that are not empty, as bytes, without BOM.

    Of a line over `MAX_LINE` only the beginning is kept, for `parse_json` to refuse.
    """
    with open_bytes(path) as file:
        for number in count(1):
            if not (line := file.readline(MAX_LINE + 1)):
                return
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(65_536)) and not rest.endswith(b"\n"):
                    pass  # go to the end of this line
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line := line.rstrip(b"\r\n"):
                yield number, line


# %%
def parse_json(raw: bytes) -> object:
    """What a line of a JSONL file holds; the error says what is wrong, and where."""
    if len(raw) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE // 10**6} MB: is this JSON Lines?")
    try:
        return json.loads(decode(raw))
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at")  # as some of them end
        raise ValueError(f"not JSON: {reason} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not a row: its brackets are nested too deeply") from None


def parse_row(line: bytes) -> dict:
    """One line of a JSONL file -> its object, or an error that says what it is."""
    row = parse_json(line)
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
    """Parse numbered raw items; a bad one is an error, or counted with `skip`.

    A number is that of a line, or a text such as "item 3".
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
    """Yield the objects of a JSONL file (`.jsonl` or `.jsonl.gz`), one a line.

    A bad line raises `ValueError` with file, line number and reason; with `skip`,
    bad lines are counted and reported at the end. Empty lines are passed over.
    """
    return keep_good(path, read_lines(path), parse_row, skip)


# %%
END_OF_TEXT = b"<|endoftext|>"
PIECE = 1_000_000  # bytes of a long document that are handed on at a time


def last_break(data: bytes) -> int:
    """Where to cut: after the last line or word, or at least between characters."""
    if end := data.rfind(b"\n") + 1 or data.rfind(b" ") + 1:
        return end
    begun = (back for back in (1, 2, 3) if data[-back] >= 0xC0)  # a character begins
    return len(data) - next(begun, 0)


def parse_text(raw: bytes) -> dict:
    """One document of a `.txt` file -> the row that a JSONL file would have."""
    return {"text": decode(raw)}


def read_documents(path: str | Path) -> Iterator[tuple[int, bytes]]:
    """First line numbers and documents of a `.txt` file, divided by `<|endoftext|>`.

    A file without such a mark is one document, handed on in pieces of about a
    million bytes, so that a file of any size, or a line, can be streamed.
    """
    number, rest = 1, b""
    with open_bytes(path) as file:
        blocks = chain(iter(lambda: file.read(PIECE), b""), [END_OF_TEXT])
        for index, block in enumerate(blocks):
            rest += block.removeprefix(b"\xef\xbb\xbf") if index == 0 else block
            *texts, rest = rest.split(END_OF_TEXT)
            while len(rest) > PIECE + len(END_OF_TEXT):  # a mark may have begun
                cut = last_break(rest[:PIECE])
                texts, rest = [*texts, rest[:cut]], rest[cut:]
            for text in texts:
                first = number + text[: len(text) - len(text.lstrip())].count(b"\n")
                number += text.count(b"\n")
                if text := text.replace(b"\r\n", b"\n").strip(b"\n"):
                    yield first, text


# %%
def read_csv(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Line numbers and rows of a CSV file whose first line names the columns."""
    csv.field_size_limit(MAX_LINE - 1)  # a longer line is cut, and so an error
    with (
        open_bytes(path) as file,
        io.TextIOWrapper(
            file, encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as text,
    ):
        lines = iter(lambda: text.readline(MAX_LINE), "")
        reader = csv.DictReader(lines, restkey="(unnamed)")
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
def read_parquet(path: str | Path) -> Iterator[tuple[str, dict]]:
    """Numbers and rows of a Parquet file, a batch in memory at a time."""
    import pyarrow.parquet  # slow to import, and seldom needed

    try:
        with open_bytes(path) as file, TemporaryFile() as copy:
            if not file.seekable():  # its table of contents stands at its end
                shutil.copyfileobj(file, copy)
                file = copy
            batches = pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024)
            rows = chain.from_iterable(batch.to_pylist() for batch in batches)
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a whole Parquet file: {reason}") from None


def read_json(path: str | Path) -> Iterator[tuple[int | str, bytes]]:
    """Numbers and objects of a `.json` file: one list, or JSONL under another name."""
    with open_bytes(path) as file:
        data = file.read(100)
        if not data.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from read_lines(path)
            return
        data += file.read()
    try:
        rows = json.loads(decode(data.removeprefix(b"\xef\xbb\xbf")))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    for number, row in enumerate(rows, 1):
        yield f"item {number}", json.dumps(row).encode()


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


def format_of(path: str | Path) -> tuple[Callable, Callable]:
    """The entry of `FORMATS` for a file; the error lists what can be read."""
    if (suffix := suffix_of(path)) not in FORMATS:
        known = " ".join(FORMATS)
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    return FORMATS[suffix]


def read_rows(
    path: str | Path, skip: bool = False, pick: Callable = dict
) -> Iterator[dict]:
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


# %%
def files_in(source: str | Path) -> list[Path]:
    """The files that `source` stands for: itself, or all that a folder holds."""
    path = Path(source)
    if not path.is_dir():
        return [path]
    inside = (f for f in path.rglob("*") if f.is_file() and f.name[0] != ".")
    if not (files := sorted(f for f in inside if suffix_of(f) in FORMATS)):
        raise ValueError(f"folder {path} holds no file ending in {' '.join(FORMATS)}")
    return files


def read_texts(
    source: str | Path, column: str = "text", skip: bool = False
) -> Iterator[str]:
    """Yield documents, one at a time, from a file, a folder or a named public set.

    `source`: a `.txt`, `.jsonl`, `.json`, `.csv` or `.parquet` file, each also as
    `.gz`; a folder of them; the web address of such a file; or a data set's name on
    the Hugging Face hub, such as `roneneldan/TinyStories`. `column` is where the
    rows hold their text. With `skip`, bad rows are counted and reported instead of
    raising `ValueError`.
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
    """Yield the texts in one column of a named public set: see `fetch_rows`."""
    yield from (pick_text(row, column) for row in fetch_rows(name))


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
    except OSError as error:
        if error.errno and not error.filename:  # a full disk names no file
            error.filename = str(target)
        raise
    finally:
        if aside.exists() and not target.exists():
            aside.rename(target)
        remove(temporary)
        remove(aside)


# %%
def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
HUB = "https://huggingface.co"  # HF_ENDPOINT may name a mirror of it


def open_public(name: str):
    """The training split of a public set on the Hugging Face hub, as a stream.

    `owner/set`, or `owner/set:file.jsonl` for one file of a set that has several; or
    the address of a file anywhere, `https://host/file.jsonl.gz`.
    """
    web = "://" in name
    place, _, file = (name, "", "") if web else name.partition(":")
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise OSError("HF_HUB_OFFLINE is set")
        if web:
            from datasets import IterableDataset

            urlopen(name, timeout=4).close()
            return IterableDataset.from_generator(read_rows, gen_kwargs={"path": name})
        with suppress(HTTPError):  # it refuses this, so it is there
            server = Request(os.environ.get("HF_ENDPOINT", HUB), method="HEAD")
            urlopen(server, timeout=4).close()
        from datasets import load_dataset  # slow to import, and seldom needed

        files = file or None
        return load_dataset(place, data_files=files, split="train", streaming=True)
    except (OSError, ValueError, HTTPException) as error:
        reason = " ".join(str(error).split())[:80]
    target = Path((file or place).removesuffix(".gz")).stem + ".jsonl"
    raise ValueError(
        f"{name}: no such file, and no such public set within reach ({reason}); "
        f"where there is a network, run `minillm data convert {name} {target}`"
    )


# %%
def add_rows(rows, file: BinaryIO, state: dict) -> Iterator[dict]:
    """Write the rows that `state` says are still to come, and yield each."""
    if state["where"]:
        rows.load_state_dict(state["where"])
    stream = iter(rows)
    while True:
        try:
            row = next(stream)
        except StopIteration:
            return
        except ValueError:  # a reader's own: it says which row
            raise
        except Exception as error:  # a broken connection has many names
            reason = (
                f"interrupted ({type(error).__name__}); what came is kept: run again"
            )
            raise ValueError(reason) from error
        line = json.dumps(row, ensure_ascii=False, default=str)
        file.write(line.encode("utf-8") + b"\n")
        state.update(bytes=file.tell(), where=rows.state_dict())
        yield row


def save_place(note: Path, file: BinaryIO, state: dict) -> None:
    """Note how far a fetch has come, once the file holds all of that."""
    file.flush()
    with write_atomic(note) as temporary:
        temporary.write_text(json.dumps(state))


def sha256_of(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# %%
def go_on(name: str, part: Path, connect: Callable) -> Iterator[dict]:
    """Yield the rows that are in the file `part`, then fetch and add the others."""
    from filelock import FileLock, Timeout

    note, state = part.with_suffix(".state"), {"bytes": 0, "where": None}
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(part.with_suffix(".lock")).acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{name} is being fetched by another process") from None
    with lock, open(part, "ab") as file:
        if note.exists():
            state = json.loads(note.read_text())
        file.truncate(state["bytes"])  # the last row may have been cut
        if state["bytes"]:
            yield from read_jsonl(part)
        try:
            for number, row in enumerate(add_rows(connect(name), file, state), 1):
                yield row
                if number % 1000 == 0:  # even if the machine is switched off now
                    save_place(note, file, state)
        finally:
            save_place(note, file, state)


# %%
def fetch_rows(
    name: str, folder: str | Path | None = None, connect: Callable | None = None
) -> Iterator[dict]:
    """Yield the rows of a public set or an address: cached, or while they are fetched.

    The cache is `folder`, or else `MINILLM_CACHE`, or else `~/.cache/minillm`;
    `connect` opens a set by its name, as `open_public` does.
    """
    place = name.partition(":")[0]
    if "://" in name:
        format_of(name)
    elif place.count("/") != 1 or suffix_of(place) in FORMATS:
        raise FileNotFoundError(f"{name}: no such file or folder")
    folder = folder or os.environ.get("MINILLM_CACHE") or Path.home() / ".cache/minillm"
    path = Path(folder) / (re.sub(r"[^\w.-]+", "--", name) + ".jsonl")
    part, about = path.with_suffix(".part"), path.with_suffix(".about")
    if path.exists():
        if about.exists() and json.loads(about.read_text())["sha256"] == sha256_of(
            path
        ):
            yield from read_jsonl(path)
            return
        print(f"{path} is not as it was fetched: again", file=sys.stderr)
        path.unlink()
    yield from go_on(name, part, connect or open_public)
    with write_atomic(about) as temporary:
        temporary.write_text(json.dumps({"name": name, "sha256": sha256_of(part)}))
    part.replace(path)
    remove(part.with_suffix(".state"))


# %%
HAN = re.compile("[\u4e00-\u9fff]")
WORD = re.compile(r"[\u4e00-\u9fff]|\w+")  # Chinese is cut into its characters


def summarize(texts: Iterable[str]) -> dict:
    """Count what a corpus holds: documents, bytes, lengths, words, duplicates."""
    seen, words, characters, sizes = Counter(), Counter(), Counter(), []
    for text in texts:
        seen[hash(text)] += 1
        words.update(text.split())
        characters.update(text)
        sizes.append(len(text.encode("utf-8")))
    if not sizes:
        raise ValueError("there are no documents to summarize")
    return {
        "documents": len(sizes),
        "bytes": sum(sizes),
        "characters": characters.total(),
        "distinct_characters": len(characters),
        "shortest": min(sizes),
        "median": int(statistics.median(sizes)),
        "longest": max(sizes),
        "words": sum(words.values()),
        "distinct_words": len(words),
        "duplicates": len(sizes) - len(seen),
        "han_share": sum(n for c, n in characters.items() if HAN.match(c))
        / max(characters.total(), 1),
        "frequent": [word for word, _ in words.most_common(10)],
        "rare": [word for word, _ in words.most_common()[:-11:-1]],
    }


# %%
class NearDuplicates:
    """Finds texts that are nearly the same as an earlier one, among very many.

    Two texts are as alike as their sets of runs of three words overlap. MinHash
    estimates this from 128 numbers a text (Broder 1997; the library is `datasketch`).
    """

    def __init__(self, likeness: float = 0.8):
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            reason = "near duplicates need a library: pip install datasketch"
            raise ValueError(reason) from None
        self.sketch, self.index = MinHash, MinHashLSH(threshold=likeness, num_perm=128)
        self.likeness, self.known, self.count = likeness, {}, 0

    def find(self, text: str) -> tuple[int, float] | None:
        """The number of an earlier text that this one repeats, and how like it is."""
        words = WORD.findall(text)
        runs = (" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))
        sketch = self.sketch(num_perm=128)
        sketch.update_batch([run.encode("utf-8") for run in set(runs)])
        near = [(sketch.jaccard(self.known[i]), -i) for i in self.index.query(sketch)]
        likeness, number = max(near, default=(0.0, 0))
        self.count += 1
        if likeness >= self.likeness:
            return -number, likeness
        self.known[self.count - 1] = sketch
        self.index.insert(self.count - 1, sketch)
        return None


# %%
def deduplicate(texts: Iterable[str], likeness: float | None = None) -> Iterator[str]:
    """Yield every text the first time it comes; of each, only a digest is kept.

    With a `likeness` below 1, texts that are so like an earlier one are left out too.
    """
    seen, near = set(), None if likeness is None else NearDuplicates(likeness)
    for text in texts:
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            if near is None or near.find(text) is None:
                yield text


def diversity(texts: list[str]) -> dict[str, float]:
    """How varied a batch of texts is: 1 is as varied as can be, 0 says one thing only.

    The share of distinct texts and of distinct runs of 1, 2 and 3 words; and the bytes
    after zlib for each byte before.
    """
    if not texts:
        raise ValueError("there are no texts to compare")
    found = {"texts": len(set(texts)) / len(texts)}
    for width in (1, 2, 3):
        runs = [
            tuple(words[i : i + width])
            for words in map(WORD.findall, texts)
            for i in range(len(words) - width + 1)
        ]
        found[f"runs of {width}"] = len(set(runs)) / max(1, len(runs))
    data = "\n".join(texts).encode("utf-8")
    return found | {"packed": len(zlib.compress(data)) / max(1, len(data))}


# %%
def held_out(text: str, share: float = 0.01, salt: str = "") -> bool:
    """Whether a text belongs to the validation split: its own digest decides.

    So a repeated text never stands on both sides, on any machine and in any order.
    """
    digest = hashlib.blake2b((salt + text).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


SAMPLE = 32_000_000  # bytes of text that are looked at closely


def sample_texts(texts: Iterable[str]) -> tuple[list[str], int, int]:
    """Texts of at most `SAMPLE` bytes, and how many texts and bytes there were in all.

    All, or else a share by their digests: so all copies of a text, or none of them.
    """
    kept, held, share, count, total = [], 0, 1.0, 0, 0
    for text in texts:
        size = len(text.encode("utf-8"))
        count, total = count + 1, total + size
        if held_out(text, share):
            kept.append(text)
            held += size
        if held > SAMPLE and len(kept) > 1:
            share /= 2
            half = [text for text in kept if held_out(text, share)]
            kept = half or kept[: len(kept) // 2]  # these were all the same
            held = sum(len(text.encode("utf-8")) for text in kept)
    return kept, count, total


# %%
def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy, in bits, of the distribution that `counts` describe."""
    counts = [count for count in counts if count]
    total = sum(counts)
    return math.log2(total) - sum(n * math.log2(n) for n in counts) / total


def compress(texts: Iterable[str]) -> dict[str, float]:
    """Bits per byte of a corpus, by byte counts, by pairs, and by three compressors.

    `order-0` and `bigram` count on the text itself and store no table: lower bounds of
    what such a model takes. zlib, bz2 and xz are real files, everything included.
    """
    data = "\n".join(texts).encode("utf-8")
    if len(data) < 2:
        raise ValueError("there is no text to compress")
    pairs = entropy(Counter(pairwise(data)).values())
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
