"""Errors about what a command was given, each in one line that says how to fix it."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FIXES = {
    errno.EACCES: "choose a folder of your own, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.ENOSPC: "free some space, or choose another disk",
}
FIXES = DISK_FIXES | {
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "this is a folder, where a file belongs",
}
ABOUT_INPUT = ValueError | OSError | ArithmeticError | MemoryError
OF_LIBRARIES = {"SafetensorError", "OutOfMemoryError", "TemplateError"}


def is_expected(error: BaseException) -> bool:
    """Whether an error is about what was given, and not a fault in this program."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, ABOUT_INPUT) or not OF_LIBRARIES.isdisjoint(kinds)


def describe(error: BaseException) -> str:
    """An error's message and its notes, in one line."""
    text = f"has no {error}" if isinstance(error, KeyError) else str(error)
    parts = [text or type(error).__name__, *getattr(error, "__notes__", [])]
    return " ".join("; ".join(parts).split())


def explain(error: BaseException) -> str:
    """An error in one line: what is wrong with which file, and how to fix it."""
    if isinstance(error, OSError) and error.strerror:
        fix = FIXES.get(error.errno, "")
        parts = [str(error.filename or ""), error.strerror, fix]
        return ": ".join(part for part in parts if part)
    return describe(error)


def need(path: str | Path, command: str) -> Path:
    """`path`, if it exists; otherwise an error with the command that makes it."""
    if not Path(path).exists():
        reason = f"no such file or folder; make it with `{command}`, or name another"
        raise FileNotFoundError(f"{path}: {reason}")
    return Path(path)


@contextmanager
def naming(path: str | Path, fix: str) -> Iterator[None]:
    """Errors about what is read from `path` name it, and say how to fix it."""
    try:
        yield
    except (ArithmeticError, MemoryError):
        raise  # not about a file
    except Exception as error:
        if not (is_expected(error) or isinstance(error, KeyError | TypeError)):
            raise
        if isinstance(error, OSError) and error.errno in DISK_FIXES:
            error.filename = error.filename or str(path)
            raise  # `explain` knows how to fix it
        reason = describe(error)
        if code := re.search(r"os error (\d+)", reason):  # from a library in Rust
            fix = DISK_FIXES.get(int(code[1]), fix)
        where = "" if str(path) in reason else f"{path}: "
        if reason.endswith((".", "?")):
            raise ValueError(f"{where}{reason} {fix[0].upper()}{fix[1:]}") from error
        raise ValueError(f"{where}{reason}; {fix}") from error
