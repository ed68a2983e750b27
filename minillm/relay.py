"""Checkpoints that survive a kill, and the rules for going on from one."""

# Generated from notebooks/appendix_relay.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "optimizer_tensors",
    "load_optimizer",
    "checksum",
    "flush_to_disk",
    "save_checkpoint",
    "read_checkpoint",
    "list_checkpoints",
    "last_checkpoint",
    "fingerprint_data",
    "identify",
    "find_differences",
    "describe_resume",
    "prune_checkpoints",
    "remove_leftovers",
    "catch_signals",
]

# %%
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from minillm.data import remove, write_atomic


# %%
def optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The optimizer's state as named tensors: "layers.0. ... .weight:exp_avg"."""
    return {
        f"{name}:{key}": value.contiguous()
        for name, p in model.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
    }


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, path: Path
) -> None:
    """Put such tensors back; counters stay on the CPU, unless one kernel reads all."""
    params, fused = dict(model.named_parameters()), optimizer.defaults.get("fused")
    optimizer.state.clear()
    for name, value in load_file(path).items():
        name, _, key = name.rpartition(":")
        device = params[name].device if value.dim() or fused else "cpu"
        optimizer.state[params[name]][key] = value.to(device)


def checksum(path: Path) -> str:
    """The beginning of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def flush_to_disk(folder: Path) -> None:
    """Wait until every file is on the disk, so that a power cut can't empty it."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


# %%
def save_checkpoint(
    folder: Path,
    model: nn.Module,
    tokenizer,
    optimizer: torch.optim.Optimizer,
    state: dict,
) -> None:
    """Write a Hugging Face folder with all that it takes to go on, or nothing at all.

    optimizer.safetensors and trainer_state.json stand beside the model; the latter has
    the other files' checksums. No pickle: opening a checkpoint can't run code.
    """
    with write_atomic(folder) as temporary:
        temporary.mkdir()
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        tensors = optimizer_tensors(model, optimizer)
        save_file(tensors, temporary / "optimizer.safetensors")
        files = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
        text = json.dumps({**state, "files": files}, indent=1)
        (temporary / "trainer_state.json").write_text(text, encoding="utf-8")
        flush_to_disk(temporary)


# %%
def read_checkpoint(folder: Path) -> dict:
    """The trainer's state in a checkpoint; ValueError if any file is damaged."""
    try:
        text = (folder / "trainer_state.json").read_text(encoding="utf-8")
        state = json.loads(text)
        for name, expected in state["files"].items():
            if checksum(folder / name) != expected:
                raise ValueError(f"{name} is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"{Path(error.filename).name} is missing"
        raise ValueError(f"{folder.name} is damaged: {reason}") from None
    return state


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint folders of a run, the oldest first."""
    found = Path(folder).glob("checkpoint-*")
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def last_checkpoint(folder: str | Path) -> tuple[Path, dict] | None:
    """The newest checkpoint that is whole, and its state; damaged ones are named."""
    found = list_checkpoints(folder)
    for older, path in reversed(list(enumerate(found))):
        try:
            return path, read_checkpoint(path)
        except ValueError as error:
            print(f"{error}; going back to the one before" if older else error)
    if found:
        raise ValueError(f"none of the {len(found)} checkpoints is whole")
    return None


# %%
def fingerprint_data(dataset, samples: int = 64) -> str:
    """A short hash of a data set: all its lengths, and some of its documents."""
    digest = hashlib.sha256(np.asarray(dataset.lengths, dtype=np.int64).tobytes())
    chosen = np.linspace(0, len(dataset) - 1, min(samples, len(dataset)))
    for i in chosen.astype(int).tolist():
        for part in dataset[i]:
            digest.update(np.asarray(part, dtype=np.int64)[:100_000].tobytes())
    return digest.hexdigest()[:16]


def identify(model: nn.Module, tokenizer, dataset, **order: int) -> dict:
    """What must be the same for a run to go on: corpus, tokenizer, shape, order."""
    shape = {f"shape: {k}": v for k, v in model.config.to_dict().items()}
    return {
        "corpus": fingerprint_data(dataset),
        "tokenizer": tokenizer.fingerprint()[:16],
        **order,
        **json.loads(json.dumps(shape)),
    }


def find_differences(saved: dict, now: dict) -> list[str]:
    """One line for each entry that differs: its name, the old and the new value."""
    names = [name for name in saved | now if saved.get(name) != now.get(name)]
    return [f"{name} was {saved.get(name)}, is {now.get(name)}" for name in names]


def describe_resume(folder: Path, state: dict, settings: dict) -> str:
    """Where a run goes on, and the settings that are others now."""
    lines = find_differences(state["config"], settings)
    return "\n".join([f"going on from {folder.name}", *(f"  {x}" for x in lines)])


# %%
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


# %%
@contextmanager
def catch_signals(stop: Callable[[str], None]) -> Iterator[None]:
    """While open, Ctrl-C and SIGTERM call `stop` with their name; the second kills."""
    seen = []

    def handle(number: int, frame: object) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        stop(signal.Signals(number).name)

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
