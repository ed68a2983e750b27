"""Whole documents in batches, the loss, the loop, and its measure against the floor."""

# Generated from notebooks/09_pretraining.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "pack", "collate", "next_token_loss", "Validation", "token_losses", "evaluate",
    "RowStream", "Batches", "TrainingConfig", "Trainer", "LogCallback", "EvalCallback",
]  # fmt: skip

# %%
import bisect
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from minillm.attention import document_mask
from minillm.data import bits_per_byte
from minillm.optimization import (
    PRECISIONS, SCHEDULES, AdamW, LossScale, autocast, clip_grad_norm, cross_entropy,
    fastest_precision, parameter_groups, set_learning_rate,
)  # fmt: skip
from minillm.support.devices import gpu_columns, keep_freed_memory, peak_memory
from minillm.support.formats import read_jsonl


# %%
def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Put documents whole into rows of `context` tokens: best fit, longest first.

    Returns rows of indices into `lengths`. Each document goes to the fullest row that
    still has room for it, or opens a new one. ValueError if one is longer than a row.
    """
    if (longest := max(lengths, default=0)) > context:
        raise ValueError(f"a document of {longest} tokens is longer than {context=}")
    rows, free = [], []  # free: (room, row), sorted by room
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        at = bisect.bisect_left(free, (lengths[i], -1))
        if at == len(free):
            free.append((context, len(rows)))  # no row has more room
            rows.append([])
        room, row = free.pop(at)
        rows[row].append(i)
        bisect.insort(free, (room - lengths[i], row))
    return rows


# %%
def collate(rows: list[list[tuple[np.ndarray, ...]]], context: int) -> dict:
    """Rows of (input_ids, labels) documents -> tensors (rows, context), padded behind.

    input_ids; labels, -100 at padding; position_ids, from 0 in each document;
    document_ids, -1 at padding.
    """
    blank = dict(input_ids=0, labels=-100, position_ids=0, document_ids=-1)
    batch = {k: np.full((len(rows), context), value) for k, value in blank.items()}
    for r, row in enumerate(rows):
        end = 0
        for d, (input_ids, labels) in enumerate(row):
            begin, end = end, end + len(input_ids)
            batch["input_ids"][r, begin:end] = input_ids
            batch["labels"][r, begin:end] = labels
            batch["position_ids"][r, begin:end] = np.arange(len(input_ids))
            batch["document_ids"][r, begin:end] = d
    return {name: torch.from_numpy(array) for name, array in batch.items()}


# %%
def next_token_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Total loss in nats of the labeled tokens of each row: (rows,)."""
    ids = batch["document_ids"]
    mask = document_mask(ids) if ids.any() else None
    position_ids = batch["position_ids"]
    logits = model(batch["input_ids"], mask=mask, position_ids=position_ids)
    return cross_entropy(logits, batch["labels"], reduction="none").sum(1)


# %%
class Validation:
    """Documents to measure on, and if known the bits that each of them is worth.

    `bits` are exact: the least that any model can need on average for such documents.
    """

    def __init__(
        self, texts: Sequence[str], bits: Sequence[float] | None = None,
        kinds: Sequence[str] | None = None,
    ):  # fmt: skip
        self.texts, self.bits, self.kinds = list(texts), bits, kinds
        if not self.texts:
            raise ValueError("there are no documents to validate on")
        self.num_bytes = sum(len(text.encode("utf-8")) for text in self.texts)
        self.encoded: dict[str, list[list[int]]] = {}

    @classmethod
    def from_jsonl(cls, path: str | Path, limit: int | None = None) -> "Validation":
        """Read {"text", "bits", "kind"} rows; the last two may be missing."""
        rows = list(read_jsonl(path))[:limit]
        columns = {
            name: [row[name] for row in rows]
            for name in ("text", "bits", "kind")
            if all(name in row for row in rows)
        }
        return cls(columns["text"], columns.get("bits"), columns.get("kind"))

    @property
    def floor(self) -> float | None:
        """The lowest bits per byte that can be expected, or None if it is not known."""
        return sum(self.bits) / self.num_bytes if self.bits else None

    def encode(self, tokenizer) -> list[list[int]]:
        """The token ids of each document, encoded once for each tokenizer."""
        key = tokenizer.fingerprint()
        if key not in self.encoded:
            self.encoded = {key: tokenizer.encode_batch(self.texts)}
        return self.encoded[key]


# %%
@torch.no_grad()
def token_losses(
    model: nn.Module, documents: Sequence[Sequence[int]], begin: int,
    batch_tokens: int = 4096, precision: str = "float32",
) -> list[np.ndarray]:  # fmt: skip
    """Nats of every token of every document, its end included, each document ALONE.

    In rows with others of similar length, padded behind; longer ones are cut to the
    model's context. Leaves the model in the mode, training or not, in which it was.
    """
    device, was_training = next(model.parameters()).device, model.training
    limit = model.config.max_position_embeddings
    full = [torch.tensor([begin, *ids, begin]) for ids in documents]
    losses = [np.zeros(len(ids) - 1) for ids in full]
    pieces = sorted(
        (min(limit, len(ids) - 1 - start), i, start)
        for i, ids in enumerate(full)
        for start in range(0, len(ids) - 1, limit)
    )
    model.eval()
    while pieces:
        taken = pieces[-max(1, batch_tokens // pieces[-1][0]) :]
        del pieces[-len(taken) :]
        parts = [full[i][start : start + length + 1] for length, i, start in taken]
        input_ids = pad_sequence([x[:-1] for x in parts], True).to(device)
        labels = pad_sequence([x[1:] for x in parts], True, -100).to(device)
        with autocast(device, precision):
            nats = cross_entropy(model(input_ids), labels, reduction="none")
        for row, (length, i, start) in zip(nats.cpu().numpy(), taken, strict=True):
            losses[i][start : start + length] = row[:length]
    model.train(was_training)
    return losses


# %%
def evaluate(
    model: nn.Module, tokenizer, validation: Validation, precision: str = "float32"
) -> dict[str, float | None]:
    """The mean loss a token, its perplexity, bits per byte, and the floor of those.

    Every document alone, from the begin token, end included. `above_floor` is in per
    cent; floor and above_floor are None where the documents' exact bits are not known.
    """
    begin, ids = tokenizer.eos_token_id, validation.encode(tokenizer)
    losses = token_losses(model, ids, begin, precision=precision)
    nats = math.fsum(float(row.sum()) for row in losses)
    loss = nats / sum(len(row) for row in losses)
    bits, floor = bits_per_byte(nats, validation.num_bytes), validation.floor
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": bits,
        "floor": floor,
        "above_floor": 100 * (bits / floor - 1) if floor else None,
    }


# %%
class RowStream:
    """The endless stream of packed rows that every process of a run agrees on.

    Documents come in a new random order each epoch; longer ones are cut into pieces of
    `context`. Windows of them are packed, and the rows of a window are shuffled. A row
    is the numbers of its pieces; `document`, `start`, `length` say what a piece is.
    ValueError if there are no documents.
    """

    window_rows = 256  # about so many rows are packed together

    def __init__(self, lengths: Sequence[int], context: int, seed: int = 0):
        lengths = np.asarray(lengths, dtype=np.int64)
        if not len(lengths):
            raise ValueError("there are no documents to train on")
        self.context, self.seed = context, seed
        cuts = -(-lengths // context)  # pieces of each document
        self.document = np.repeat(np.arange(len(lengths)), cuts)
        before = np.repeat(np.cumsum(cuts) - cuts, cuts)
        self.start = (np.arange(len(before)) - before) * context
        self.length = np.minimum(lengths[self.document] - self.start, context)
        self.window = max(16, int(self.window_rows * context / self.length.mean()))
        self.order = functools.lru_cache(2)(self.order)  # a window may span two epochs
        self.load_state_dict({"window": -1, "row": 0})

    def __next__(self) -> np.ndarray:
        if self.row == len(self.queue):
            self.load_state_dict({"window": self.number + 1, "row": 0})
        self.row += 1
        return self.queue[self.row - 1]

    def order(self, epoch: int) -> np.ndarray:
        """All pieces, in the order of this epoch."""
        random = np.random.default_rng([self.seed, epoch])
        return random.permutation(len(self.length))

    def pack_window(self, number: int) -> list[np.ndarray]:
        """The rows of one window: packed from its share of the order, then shuffled."""
        places = np.arange(number * self.window, (number + 1) * self.window)
        epochs, places = np.divmod(places, len(self.length))
        parts = [self.order(n)[places[epochs == n]] for n in np.unique(epochs).tolist()]
        chosen = np.concatenate(parts)
        rows = pack(self.length[chosen].tolist(), self.context)
        random = np.random.default_rng([self.seed, number, 1])
        return [chosen[rows[i]] for i in random.permutation(len(rows))]

    def state_dict(self) -> dict[str, int]:
        return {"window": self.number, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number, self.row = state["window"], state["row"]
        self.queue = self.pack_window(self.number) if self.number >= 0 else []


# %%
class Batches:
    """Endless batches of whole documents, packed so that each is seen as if alone.

    `dataset` has `lengths` and `[i]`, a tuple of arrays of that length: (input_ids,
    labels). Of each global batch of world_size * rows rows this rank gets its `rows`.
    `collate(rows, context)` makes the batch from rows of such tuples, each tuple cut
    to at most `context`. The state counts rows of the stream, so it fits any number
    of rows and ranks.
    """

    def __init__(
        self, dataset, rows: int, context: int, seed: int = 0, rank: int = 0,
        world_size: int = 1, collate: Callable = collate,
    ):  # fmt: skip
        self.dataset, self.stream = dataset, RowStream(dataset.lengths, context, seed)
        self.rows, self.rank, self.world_size = rows, rank, world_size
        self.collate = collate
        self.documents: list[list[int]] = []  # of each row of the last batch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        everyone = [next(self.stream) for _ in range(self.world_size * self.rows)]
        rows = everyone[self.rank * self.rows : (self.rank + 1) * self.rows]
        self.documents = [self.stream.document[row].tolist() for row in rows]
        pieces = [[self.piece(number) for number in row.tolist()] for row in rows]
        return self.collate(pieces, self.stream.context)

    def piece(self, number: int) -> tuple[np.ndarray, ...]:
        """A document, or the part of a longer one that fits a row."""
        start, length = self.stream.start[number], self.stream.length[number]
        example = self.dataset[int(self.stream.document[number])]
        return tuple(part[start : start + length] for part in example)

    @property
    def epoch(self) -> float:
        """How often the data has been gone through."""
        stream = self.stream
        windows = stream.number + stream.row / max(1, len(stream.queue))
        return max(0.0, windows * stream.window / len(stream.length))

    def state_dict(self) -> dict[str, int]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.stream.load_state_dict(state)


# %%
class SingleProcess:
    """One process. Chapter 13 has a part like it for as many as `torchrun` starts."""

    rank, world_size = 0, 1

    def sum(self, *values: float) -> list[float]:
        """Each number, added up over all processes."""
        return list(values)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are averaged over all processes."""
        return model

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """A pass whose gradients are not sent yet."""
        return nullcontext()


def count_labels(batch: dict[str, torch.Tensor]) -> int:
    """How many tokens of a batch are learned: all but the padding."""
    return int((batch["labels"] != -100).sum())


def draw(batches: Iterator[dict], passes: int) -> tuple[list[dict], list[list[int]]]:
    """The batches of a step, and the documents in each of their rows, if known."""
    drawn, documents = [], []
    for _ in range(passes):
        drawn.append(next(batches))
        documents += getattr(batches, "documents", [])
    return drawn, documents


def accumulate(
    model: nn.Module, batches: list[dict], loss: Callable, factor: float,
    processes: SingleProcess, precision: str,
) -> torch.Tensor:  # fmt: skip
    """Add up the gradients of `factor` times each pass's loss; the loss of each row.

    DDP averages over processes, and is let do so in the last pass only.
    """
    device, losses = next(model.parameters()).device, []
    for number, batch in enumerate(batches, 1):
        batch = {k: x.to(device, non_blocking=True) for k, x in batch.items()}
        wait = processes.no_sync if number < len(batches) else nullcontext
        with wait(model), autocast(device, precision):
            rows = loss(model, batch)
            (rows.sum() * factor).backward()
        losses.append(rows.detach())
    return torch.cat(losses)


def vote_precision(
    model: nn.Module, config: "TrainingConfig", processes: SingleProcess
) -> str:
    """What "auto" means on this machine: rank 0 measures, and all do the same."""
    rows, context = config.per_device_train_batch_size, config.context_length
    fastest = fastest_precision(model, rows=rows, context=context)
    vote = PRECISIONS.index(fastest) if processes.rank == 0 else 0
    return PRECISIONS[int(processes.sum(vote)[0])]


def seed_dropout(*entropy: int) -> None:
    """Seed torch by run, step and rank: there is no state that could be lost."""
    seed = np.random.SeedSequence(list(entropy)).generate_state(1)[0]
    torch.manual_seed(int(seed))


def describe_failure(
    losses: torch.Tensor, norm: float, documents: list[list[int]]
) -> str:
    """Which rows of a step have a loss that is not a number, and their documents."""
    finite = torch.isfinite(losses).tolist()
    bad = [row for row, fine in zip(documents, finite, strict=False) if not fine]
    named = sorted({i for row in bad or documents for i in row})
    text = f"gradient norm {norm}, loss not a number in "
    text += f"{finite.count(False)} of {len(finite)} rows"
    if named:
        text += "; documents " + ", ".join(map(str, named[:20]))
    return text + (", ..." if len(named) > 20 else "")


# %%
@dataclass
class TrainingConfig:
    """Settings of the loop, most of them named as in `TrainingArguments`."""

    max_steps: int = 6000
    """How many times the weights are updated."""
    per_device_train_batch_size: int = 12
    """Rows of context_length tokens in one forward pass on one device."""
    gradient_accumulation_steps: int = 1
    """Forward and backward passes for one update."""
    context_length: int = 160
    """Tokens in a row."""
    learning_rate: float = 2e-3
    """The highest rate, reached at the end of the warm-up."""
    min_learning_rate: float = 0.0
    """What the rate falls to at the end."""
    warmup_steps: int = 60
    """Steps over which the rate rises from near 0."""
    lr_scheduler_type: str = "linear"
    """How the rate falls after the warm-up: linear, cosine or constant."""
    embedding_lr_scale: float = 0.5
    """The token embedding learns at this multiple of the rate."""
    weight_decay: float = 0.1
    """AdamW's decay of the weight matrices."""
    optim: str = "adamw"
    """adamw: chapter 08's; adamw_torch_fused: the same as one kernel, for a GPU."""
    adam_beta1: float = 0.9
    """Memory of AdamW's mean of the gradients."""
    adam_beta2: float = 0.99
    """Memory of AdamW's mean of their squares; 0.95 for batches of 100,000 tokens."""
    max_grad_norm: float = 1.0
    """Longer gradients are scaled down to this norm."""
    seed: int = 0
    """Decides the order of the documents and the dropout."""
    precision: str = "auto"
    """float32, medium, bf16, fp16, or auto: what is fastest on this machine."""

    def __post_init__(self):
        choices = {"lr_scheduler_type": SCHEDULES, "optim": _OPTIMIZERS}
        choices |= {"precision": (*PRECISIONS, "auto")}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        counts = "max_steps", "per_device_train_batch_size", "context_length"
        for name in (*counts, "gradient_accumulation_steps"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1")

    def learning_rate_at(self, step: int) -> float:
        """The rate of step 0, 1, ..., max_steps - 1."""
        schedule, low = SCHEDULES[self.lr_scheduler_type], self.min_learning_rate
        high, warm_up = self.learning_rate, self.warmup_steps
        return schedule(step, self.max_steps, high, warm_up, low)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """AdamW of chapter 08, or torch's own form of it in one kernel."""
        groups = parameter_groups(model, self.weight_decay, self.embedding_lr_scale)
        betas = (self.adam_beta1, self.adam_beta2)
        return _OPTIMIZERS[self.optim](groups, lr=self.learning_rate, betas=betas)


_OPTIMIZERS = {
    "adamw": AdamW,
    "adamw_torch_fused": functools.partial(torch.optim.AdamW, fused=True),
}


# %%
@dataclass
class Progress:
    """How far a run is: with the place in the data, all that is not a tensor."""

    step: int = 0
    tokens: int = 0
    precision: str = "auto"
    grad_norm: float = 0.0
    nats_since_log: float = 0.0
    tokens_since_log: int = 0
    seconds_since_log: float = 0.0
    saved_step: int = -1
    best: dict | None = None
    evaluation: dict = field(default_factory=dict)

    def add(self, nats: float, tokens: int, norm: float, seconds: float) -> None:
        """Count a step."""
        self.step, self.grad_norm = self.step + 1, norm
        self.tokens += tokens
        self.nats_since_log += nats
        self.tokens_since_log += tokens
        self.seconds_since_log += seconds

    def row(self) -> dict:
        """Means over the steps since the last row."""
        row = {
            "step": self.step,
            "loss": self.nats_since_log / self.tokens_since_log,
            "grad_norm": self.grad_norm,
            "tokens": self.tokens,
            "tokens_per_second": self.tokens_since_log / self.seconds_since_log,
        }
        self.nats_since_log = self.seconds_since_log = 0.0
        self.tokens_since_log = 0
        return row


# %%
class Trainer:
    """The loop: draw, forward, loss, backward, clip, step. All else is a part.

    `batches` gives dicts of tensors without end; without state_dict they begin again in
    a resumed run. `loss(model, batch)` is the summed loss of each row, (rows,), and
    `count(batch)` of how many things. Callbacks have any of on_train_begin(trainer),
    on_step_end(trainer), on_log(trainer, row), on_evaluate(trainer, row),
    on_save(trainer, folder), on_failure(trainer, error), on_train_end(trainer).
    FloatingPointError if a loss or a gradient is not a number.
    """

    def __init__(
        self, model: nn.Module, config: TrainingConfig, batches: Iterator[dict],
        loss: Callable[[nn.Module, dict], torch.Tensor] = next_token_loss,
        count: Callable[[dict], int] = count_labels, callbacks: Iterable[object] = (),
        optimizer: torch.optim.Optimizer | None = None,
        processes: SingleProcess | None = None,
        wrap: Callable[[nn.Module], nn.Module] | None = None,
    ):  # fmt: skip
        self.model, self.config, self.batches = model, config, batches
        self.loss, self.count, self.callbacks = loss, count, list(callbacks)
        self.optimizer = optimizer or config.make_optimizer(model)
        self.processes = processes or SingleProcess()
        self.wrap = wrap or self.processes.wrap
        self.device = next(model.parameters()).device
        self.progress = Progress(precision=config.precision)
        self.loss_scale, self.stopping = LossScale(config.precision), ""
        if self.device.type == "cpu":
            keep_freed_memory()

    @property
    def step(self) -> int:
        return self.progress.step

    @functools.cached_property
    def forward(self) -> nn.Module:  # what a step calls: made at the first one
        return self.wrap(self.model)

    def train(self) -> dict:
        """Train to max_steps or `stop`; returns step, reason and last evaluation."""
        self.stopping = ""
        self.notify("on_train_begin")
        while self.step < self.config.max_steps:
            if self.processes.sum(bool(self.stopping))[0]:
                self.stopping = self.stopping or "another process"
                break
            self.train_step()
            self.notify("on_step_end")
        self.notify("on_train_end")
        return self.progress.evaluation | {"step": self.step, "stopped": self.stopping}

    def train_step(self) -> None:
        """One update of the weights: the loop's body."""
        start, config, place = time.perf_counter(), self.config, self.place()
        self.choose_precision()
        batches, documents = draw(self.batches, config.gradient_accumulation_steps)
        count = int(self.processes.sum(sum(map(self.count, batches)))[0])
        seed_dropout(config.seed, self.step, self.processes.rank)
        set_learning_rate(self.optimizer, config.learning_rate_at(self.step))
        self.model.train()
        self.optimizer.zero_grad()
        factor = self.processes.world_size * self.loss_scale.value / count
        parts = self.processes, self.progress.precision
        losses = accumulate(self.forward, batches, self.loss, factor, *parts)
        (total,) = self.processes.sum(math.fsum(losses.tolist()))
        self.loss_scale.unscale(self.model.parameters())
        norm = clip_grad_norm(self.model.parameters(), config.max_grad_norm).item()
        finite = math.isfinite(norm)  # if only float16 overflowed, skip the step
        if not (math.isfinite(total) and self.loss_scale.update(finite)):
            self.fail(describe_failure(losses, norm, documents), place)
        if finite:
            self.optimizer.step()
        self.progress.add(total, count, norm, time.perf_counter() - start)

    def fail(self, reason: str, place: dict) -> None:
        if place:
            self.batches.load_state_dict(place)
        error = FloatingPointError(f"step {self.step + 1}: {reason}")
        self.notify("on_failure", error)
        raise error

    def choose_precision(self) -> None:
        """Once, measure what "auto" means here."""
        if (run := self.progress).precision == "auto":
            run.precision = vote_precision(self.model, self.config, self.processes)

    def place(self) -> dict:  # {} for batches that can't tell
        return getattr(self.batches, "state_dict", dict)()

    def stop(self, reason: str = "stop()") -> None:
        """Finish the step and return from train(): for callbacks and signals."""
        self.stopping = reason

    def is_due(self, every: int) -> bool:  # at the end, all is
        due = every > 0 and self.step % every == 0
        return due or self.step == self.config.max_steps

    def notify(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event, lambda *_: None)(self, *arguments)

    def state_dict(self) -> dict:
        """All of a run's state that is not a tensor, ready for JSON."""
        progress, scale = asdict(self.progress), self.loss_scale.state_dict()
        return {"progress": progress, "batches": self.place(), "loss_scale": scale}

    def load_state_dict(self, state: dict) -> None:
        if state["batches"]:
            self.batches.load_state_dict(state["batches"])
        self.loss_scale.load_state_dict(state.get("loss_scale", {}))
        self.progress = Progress(**state["progress"])
        if self.config.precision != "auto":
            self.progress.precision = self.config.precision


# %%
class LogCallback:
    """Every `every` steps, on_log with a row of means over the steps since the last.

    `flops`: floating-point operations of a forward pass per token, if known.
    """

    def __init__(self, every: int = 10, flops: float | None = None):
        self.every, self.flops = every, flops

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.is_due(self.every):
            row = trainer.progress.row()
            row["learning_rate"] = trainer.config.learning_rate_at(trainer.step - 1)
            row["epoch"] = getattr(trainer.batches, "epoch", None)
            row["memory"] = peak_memory(trainer.device)
            if self.flops:
                row["flops_per_second"] = 3 * self.flops * row["tokens_per_second"]
                each = row["flops_per_second"] / trainer.processes.world_size
                precision = trainer.progress.precision
                row |= gpu_columns(trainer.device, precision, each)
            trainer.notify("on_log", row)


# %%
class EvalCallback:
    """`evaluate` before training, every `every` steps and at the end: on_evaluate."""

    def __init__(self, tokenizer, validation: Validation, every: int = 500):
        self.tokenizer, self.validation, self.every = tokenizer, validation, every

    def on_train_begin(self, trainer: Trainer) -> None:
        if not trainer.progress.evaluation:
            self.measure(trainer)

    def on_step_end(self, trainer: Trainer) -> None:
        if trainer.is_due(self.every):
            self.measure(trainer)

    def measure(self, trainer: Trainer) -> None:
        """Evaluate now, print one line, and notify the other callbacks."""
        found = evaluate(trainer.model, self.tokenizer, self.validation)
        row = {f"eval_{name}": value for name, value in found.items()}
        trainer.progress.evaluation = row = {"step": trainer.step, **row}
        trainer.notify("on_evaluate", row)
        text = f"step {trainer.step}: validation loss {found['loss']:.2f}, "
        text += f"{found['bits_per_byte']:.3f} bits per byte"
        if (above := found["above_floor"]) is not None:
            text += f", {above:.1f} % above the floor"
        tqdm.write(text)
