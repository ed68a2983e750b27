"""Checkpoint folders: written whole, checked when they are read, pruned."""

import json
from collections.abc import Callable
from pathlib import Path

from minillm.support.files import flush_to_disk, remove, sha256_of, write_atomic


def write_checkpoint(
    folder: Path, write_files: Callable[[Path], None], state: dict
) -> None:
    """Write a folder with all that it takes to resume, or nothing at all.

    `write_files(path)` fills it; trainer_state.json is added, with `state` and the
    checksums of the other files. It appears under its name once it is on the disk.
    """
    with write_atomic(folder) as temporary:
        temporary.mkdir()
        write_files(temporary)
        files = {p.name: sha256_of(p)[:16] for p in sorted(temporary.iterdir())}
        text = json.dumps({**state, "files": files}, indent=1)
        (temporary / "trainer_state.json").write_text(text, encoding="utf-8")
        flush_to_disk(temporary)


def read_checkpoint(folder: Path) -> dict:
    """The trainer's state in a checkpoint; ValueError if any file is damaged."""
    try:
        text = (folder / "trainer_state.json").read_text(encoding="utf-8")
        state = json.loads(text)
        for name, expected in state["files"].items():
            if sha256_of(folder / name)[:16] != expected:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"{Path(error.filename).name} is missing"
        raise ValueError(f"{folder.name} is damaged: {reason}") from None
    return state


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The folders checkpoint-STEP of a run, the oldest first."""
    found = [p for p in Path(folder).glob("checkpoint-*") if p.name[11:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def last_checkpoint(folder: str | Path) -> tuple[Path, dict] | None:
    """The newest complete checkpoint and its state, or None; damaged ones are named.

    ValueError if there are checkpoints, but none is complete: nothing starts over.
    """
    found = list_checkpoints(folder)
    for older, path in reversed(list(enumerate(found))):
        try:
            return path, read_checkpoint(path)
        except ValueError as error:
            print(f"{error}; going back to the one before" if older else error)
    if found:
        raise ValueError(f"none of the {len(found)} checkpoints is whole")
    return None


def prune_checkpoints(folder: str | Path, limit: int, best: str | None) -> None:
    """Delete all but the last `limit` checkpoints and the one named `best`."""
    for path in list_checkpoints(folder)[:-limit]:
        if path.name != best:
            aside = path.with_name(f".old-{path.name}")  # never half a checkpoint
            remove(aside)
            remove(path.rename(aside))


def remove_leftovers(folder: str | Path) -> None:
    """Delete what a process left that was killed while it wrote or deleted."""
    folder = Path(folder)
    for path in [*folder.glob(".tmp-*"), *folder.glob(".old-*")]:
        remove(path)
