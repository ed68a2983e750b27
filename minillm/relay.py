"""A run's state, and checkpoints from which a killed run resumes bit for bit."""

# Generated from notebooks/12_relay.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "optimizer_tensors", "load_optimizer", "save_weights", "load_weights",
    "fingerprint_data", "identify", "find_differences", "Checkpoints",
]  # fmt: skip

# %%
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from minillm.pretraining import Trainer
from minillm.support.checkpoints import (
    last_checkpoint,
    prune_checkpoints,
    remove_leftovers,
    write_checkpoint,
)
from minillm.transformer import Transformer


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
    """Put back the named tensors of a safetensors file.

    Counters stay on the CPU, unless the optimizer is fused and reads all in one kernel.
    """
    params, fused = dict(model.named_parameters()), optimizer.defaults.get("fused")
    optimizer.state.clear()
    for name, value in load_file(path).items():
        name, _, key = name.rpartition(":")
        device = params[name].device if value.dim() or fused else "cpu"
        optimizer.state[params[name]][key] = value.to(device)


# %%
def is_plain(model: nn.Module) -> bool:
    """Whether a model has the tensors that its config describes, and no others."""
    if not isinstance(model, Transformer):
        return False
    with torch.device("meta"):
        plain = type(model)(model.config).state_dict()
    return list_shapes(model.state_dict()) == list_shapes(plain)


def list_shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes: parameters that are not frozen, and buffers."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    here = model.state_dict()
    return trained | {n: here[n] for n in here.keys() - parameters.keys()}


# %%
def save_weights(model: nn.Module, folder: Path) -> str:
    """Write a model's tensors into `folder`; return in words what was written.

    A `Transformer` as its config describes it becomes a Hugging Face folder, whether or
    not a part is frozen. Of a model with other parts (adapters, heads), only what is
    trained is written, to trainable.safetensors: the rest is what the run started from.
    """
    if is_plain(model):
        model.save_pretrained(folder)
        return "all weights"
    trained = trained_tensors(model)
    tensors = {name: tensor.contiguous() for name, tensor in trained.items()}
    save_file(tensors, folder / "trainable.safetensors")
    return f"{len(trained)} trained tensors of {len(model.state_dict())}"


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put back what `save_weights` wrote; ValueError if a name or a shape differs."""
    if is_plain(model):
        model.load_state_dict(Transformer.from_pretrained(folder).state_dict())
        return
    found, here = load_file(folder / "trainable.safetensors"), trained_tensors(model)
    if differences := find_differences(list_shapes(found), list_shapes(here)):
        raise ValueError(f"{folder}: the shape of {differences[0]}")
    for name, tensor in here.items():
        tensor.copy_(found[name])


# %%
def hash_frozen(model: nn.Module) -> str:
    """A short hash of the parameters that are not trained; "" if all of them are."""
    digest, frozen = hashlib.sha256(), 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            numbers = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(name.encode() + numbers.numpy().tobytes())
            frozen += 1
    return digest.hexdigest()[:16] if frozen else ""


# %%
def fingerprint_data(dataset, samples: int = 64) -> str:
    """A short hash of a data set: all its lengths, and `samples` of its documents."""
    digest = hashlib.sha256(np.asarray(dataset.lengths, dtype=np.int64).tobytes())
    chosen = np.linspace(0, len(dataset) - 1, min(samples, len(dataset)))
    for i in chosen.astype(int).tolist():
        for part in map(np.asarray, dataset[i]):
            numbers = part if part.dtype.kind == "f" else part.astype(np.int64)
            digest.update(numbers[:100_000].tobytes())
    return digest.hexdigest()[:16]


def identify(model: nn.Module, tokenizer, dataset, **order: int) -> dict:
    """What must be the same for a run to resume: corpus, tokenizer, shape, order.

    If a part of the model is frozen, its weights count, too; if the model has parts
    that its config doesn't describe, the number of tensors that are trained.
    """
    shape = {f"shape: {k}": v for k, v in model.config.to_dict().items()}
    trained = "" if is_plain(model) else f"{len(trained_tensors(model))} tensors"
    parts = {"frozen weights": hash_frozen(model), "trained": trained}
    return {
        "corpus": fingerprint_data(dataset),
        "tokenizer": tokenizer.fingerprint()[:16],
        **order,
        **json.loads(json.dumps(shape)),
        **{name: value for name, value in parts.items() if value},
    }


def find_differences(saved: dict, now: dict) -> list[str]:
    """One line for each entry that differs: its name, the old and the new value."""
    names = [name for name in saved | now if saved.get(name) != now.get(name)]
    return [f"{name} was {saved.get(name)}, is {now.get(name)}" for name in names]


# %%
class Checkpoints:
    """A callback: every `every` steps, a complete folder checkpoint-STEP.

    It contains the model and its tokenizer as a Hugging Face folder, the optimizer's
    tensors, and trainer_state.json: the trainer's state, `settings`, and `identity`,
    without which no run resumes. The last `limit` are kept, and the best. Only the
    process of rank 0 writes.
    """

    def __init__(
        self,
        folder: str | Path,
        tokenizer,
        every: int = 500,
        limit: int = 2,
        identity: dict | None = None,
        settings: dict | None = None,
    ):
        self.folder, self.tokenizer = Path(folder), tokenizer
        self.every, self.limit = every, limit
        self.identity, self.settings = identity or {}, settings or {}

    def resume(self, trainer: Trainer) -> Path | None:
        """Load the last complete checkpoint and return its folder, or None.

        ValueError if it belongs to another run, with every difference.
        """
        if trainer.processes.rank == 0:
            remove_leftovers(self.folder)
        if not (found := last_checkpoint(self.folder)):
            return None
        folder, state = found
        if differences := find_differences(state["identity"], self.identity):
            raise ValueError(f"can't resume from {folder}: " + "; ".join(differences))
        load_weights(trainer.model, folder)
        tensors = folder / "optimizer.safetensors"
        load_optimizer(trainer.model, trainer.optimizer, tensors)
        trainer.load_state_dict(state)
        if trainer.processes.rank == 0:
            changed = find_differences(state["config"], self.settings)
            print("\n  ".join([f"resuming from {folder.name}", *changed]))
        return folder

    def save(self, trainer: Trainer) -> Path:
        """Write checkpoint-STEP, unless it is there; return its folder."""
        folder = self.folder / f"checkpoint-{trainer.step:06d}"
        if trainer.progress.saved_step == trainer.step or trainer.processes.rank:
            return folder
        trainer.progress.saved_step = trainer.step
        state = trainer.state_dict() | {"config": self.settings}
        state["identity"] = self.identity

        def write_files(place: Path) -> None:
            state["saved"] = save_weights(trainer.model, place)
            self.tokenizer.save_pretrained(place)
            tensors = optimizer_tensors(trainer.model, trainer.optimizer)
            save_file(tensors, place / "optimizer.safetensors")

        write_checkpoint(folder, write_files, state)
        return folder

    def keep(self, trainer: Trainer) -> None:
        """Save; of all checkpoints, leave the last few and the best."""
        progress, now = trainer.progress, trainer.progress.evaluation
        if now.get("step") == trainer.step:
            if progress.best is None or now["eval_loss"] < progress.best["eval_loss"]:
                progress.best = {k: now[k] for k in ("step", "eval_loss")}
        folder = self.save(trainer)
        best = progress.best and f"checkpoint-{progress.best['step']:06d}"
        prune_checkpoints(self.folder, self.limit, best)
        trainer.notify("on_save", folder)

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.is_due(self.every):
            self.keep(trainer)

    def on_failure(self, trainer: Trainer, error: Exception) -> None:
        error.args = (f"{error}; {self.save(trainer).name} is unharmed",)

    def on_train_end(self, trainer: Trainer) -> None:
        if trainer.step < trainer.config.max_steps:
            self.keep(trainer)
            reason = trainer.stopping or "another process"
            tqdm.write(f"stopped by {reason} after step {trainer.step}; saved")
