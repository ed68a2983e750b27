"""Files that are whole or not there: atomic writes, JSON, checksums."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(content: object, path: str | Path) -> None:
    """Write `content` as indented JSON in UTF-8, whole or not at all."""
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> dict:
    """What a JSON file holds; an error names the file."""
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def sha256_of(path: str | Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(folder: Path) -> None:
    """Wait until every file is on the disk, so that a power cut can't empty it."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
