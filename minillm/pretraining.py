"""Whole documents in batches, the training loop, and runs that can be resumed."""

# Generated from notebooks/09_pretraining.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "WINDOW_ROWS",
    "SCHEDULES",
    "OPTIMIZERS",
    "COUNTS",
    "TokenFile",
    "pack",
    "RowStream",
    "Batches",
    "Validation",
    "line_up",
    "token_losses",
    "evaluate",
    "batch_nats",
    "TrainingConfig",
    "constant_schedule",
    "learning_rate_at",
    "check_training",
    "pick_device",
    "Team",
    "check_fit",
    "choose_precision",
    "Ahead",
    "draw",
    "count_labels",
    "accumulate",
    "Progress",
    "make_optimizer",
    "keep_freed_memory",
    "Run",
    "train_step",
    "WatchedRun",
    "is_due",
    "explain_failure",
    "show_progress",
    "Trainer",
]

# %%
import atexit
import bisect
import ctypes
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minillm.attention import document_mask
from minillm.data import bits_per_byte, read_jsonl
from minillm.optimization import (
    PRECISIONS,
    AdamW,
    autocast,
    clip_grad_norm,
    cosine_schedule,
    cross_entropy,
    fastest_precision,
    linear_schedule,
    parameter_groups,
    set_learning_rate,
)
from minillm.relay import (
    catch_signals,
    describe_resume,
    find_differences,
    identify,
    last_checkpoint,
    load_optimizer,
    prune_checkpoints,
    save_checkpoint,
)
from minillm.run_log import (
    RunLog,
    describe_evaluation,
    describe_failure,
    describe_memory,
    gpu_columns,
    is_out_of_memory,
    open_log,
    peak_memory,
    write_final,
)
from minillm.transformer import Transformer, count_flops


# %%
class TokenFile:
    """The documents of a token file (.npy, memory-mapped): EOT doc EOT doc ... EOT.

    `[i]` gives two views of the file, one token apart: the input, EOT and the document,
    and the labels, the document and EOT. With a tokenizer, a file written
    with another one is refused. `lengths` counts the tokens of each input.
    """

    def __init__(self, path: str | Path, tokenizer=None):
        name = Path(path).name.removesuffix(".npy") + ".npy"
        self.path = Path(path).with_name(name)
        self.tokens = np.load(self.path, mmap_mode="r")
        about = json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))
        if tokenizer and tokenizer.fingerprint() != about["tokenizer"]:
            raise ValueError(f"{self.path.name} was written with another tokenizer")
        size = 1 << 24  # tokens compared at a time: the file may exceed the memory
        self.ends = np.concatenate(
            [
                at + np.flatnonzero(self.tokens[at : at + size] == self.tokens[0])
                for at in range(0, len(self.tokens), size)
            ]
        )
        self.lengths = np.diff(self.ends)
        if not len(self.lengths):
            raise ValueError(f"{self.path.name} holds no documents")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        piece = self.tokens[self.ends[i] : self.ends[i + 1] + 1]
        return piece[:-1], piece[1:]


# %%
def pack(lengths: Sequence[int], context: int) -> list[list[int]]:
    """Put documents whole into rows of `context` tokens: best fit, longest first.

    Returns rows of indices into `lengths`. Each document goes to the fullest row that
    still has room for it, or opens a new one.
    """
    rows, free = [], []  # free: (room, row), sorted by room
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        at = bisect.bisect_left(free, (lengths[i], -1))
        if at == len(free):
            bisect.insort(free, (context, len(rows)))
            rows.append([])
            at = bisect.bisect_left(free, (lengths[i], -1))
        room, row = free.pop(at)
        rows[row].append(i)
        bisect.insort(free, (room - lengths[i], row))
    return rows


# %%
class RowStream:
    """The endless stream of packed rows that every process of a run agrees on.

    Documents come in a new random order each epoch; longer ones are cut into pieces of
    `context`. Windows of them are packed, and the rows of a window are shuffled. A row
    is the numbers of its pieces; `document`, `start`, `length` say what a piece is.
    """

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
        self.window = max(16, int(WINDOW_ROWS * context / self.length.mean()))
        self.orders: dict[int, np.ndarray] = {}
        self.load_state_dict({"window": -1, "row": 0})

    def __next__(self) -> np.ndarray:
        if self.row == len(self.queue):
            state = {"window": self.number + 1, "row": 0}
            self.load_state_dict(state)
        self.row += 1
        return self.queue[self.row - 1]

    def order(self, epoch: int) -> np.ndarray:
        """All pieces, in the order of this epoch; the last two orders are kept."""
        if epoch not in self.orders:
            self.orders.pop(epoch - 2, None)
            random = np.random.default_rng([self.seed, epoch])
            self.orders[epoch] = random.permutation(len(self.length))
        return self.orders[epoch]

    def pack_window(self, number: int) -> list[np.ndarray]:
        """The rows of one window: packed from its share of the order, then shuffled."""
        places = np.arange(number * self.window, (number + 1) * self.window)
        epochs, places = np.divmod(places, len(self.length))
        parts = [self.order(n)[places[epochs == n]] for n in np.unique(epochs)]
        chosen = np.concatenate(parts)
        rows = pack(self.length[chosen].tolist(), self.context)
        random = np.random.default_rng([self.seed, number, 1])
        return [chosen[rows[i]] for i in random.permutation(len(rows))]

    def state_dict(self) -> dict[str, int]:
        return {"window": self.number, "row": self.row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number, self.row = state["window"], state["row"]
        self.queue = self.pack_window(self.number) if self.number >= 0 else []


WINDOW_ROWS = 256  # about so many rows are packed together


# %%
class Batches:
    """Endless batches of whole documents, packed so that each is seen as if alone.

    `dataset` has `lengths` and `[i]` -> (input_ids, labels). Of each global batch of
    world_size * rows rows this rank gets its `rows`. A batch is a dict of (rows,
    context) int64 tensors: input_ids; labels, -100 at padding; position_ids, from 0 in
    each document; document_ids, -1 at padding. The state counts rows of the stream, so
    it fits any number of rows and ranks.
    """

    def __init__(
        self,
        dataset,
        rows: int,
        context: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.dataset, self.stream = dataset, RowStream(dataset.lengths, context, seed)
        self.rows, self.rank, self.world_size = rows, rank, world_size
        self.documents: list[list[int]] = []  # of each row of the last batch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        team = [next(self.stream) for _ in range(self.world_size * self.rows)]
        rows = team[self.rank * self.rows : (self.rank + 1) * self.rows]
        self.documents = [self.stream.document[row].tolist() for row in rows]
        return self.collate(rows)

    def collate(self, rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
        """Rows of pieces -> tensors."""
        blank = dict(input_ids=0, labels=-100, position_ids=0, document_ids=-1)
        shape = (len(rows), self.stream.context)
        batch = {name: np.full(shape, value) for name, value in blank.items()}
        for r, row in enumerate(rows):
            end = 0
            for d, piece in enumerate(row.tolist()):
                length, start = self.stream.length[piece], self.stream.start[piece]
                input_ids, labels = self.dataset[int(self.stream.document[piece])]
                begin, end = end, end + length
                batch["input_ids"][r, begin:end] = input_ids[start : start + length]
                batch["labels"][r, begin:end] = labels[start : start + length]
                batch["position_ids"][r, begin:end] = np.arange(length)
                batch["document_ids"][r, begin:end] = d
        return {name: torch.from_numpy(array) for name, array in batch.items()}

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
class Validation:
    """Documents to measure on, and if known the bits that each of them is worth.

    `bits` are exact: the least that any model can need on average for such documents.
    """

    def __init__(
        self,
        texts: Sequence[str],
        bits: Sequence[float] | None = None,
        kinds: Sequence[str] | None = None,
    ):
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
        key = tokenizer.fingerprint()
        if key not in self.encoded:
            self.encoded = {key: tokenizer.encode_batch(self.texts)}
        return self.encoded[key]


# %%
def line_up(pieces: list[tuple[int, int, int]], full: list[np.ndarray]) -> torch.Tensor:
    """Pieces (length, document, start) as inputs and labels: (2, pieces, longest)."""
    longest = max(length for length, _, _ in pieces)
    batch = torch.tensor([[[0]], [[-100]]]).repeat(1, len(pieces), longest)
    for row, (length, i, start) in enumerate(pieces):
        piece = torch.from_numpy(full[i][start : start + length + 1])
        batch[0, row, :length], batch[1, row, :length] = piece[:-1], piece[1:]
    return batch


# %%
@torch.no_grad()
def token_losses(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    begin: int,
    batch_tokens: int = 4096,
    precision: str = "float32",
) -> list[np.ndarray]:
    """Nats of every token of every document, its end included, each document ALONE.

    In rows with others of similar length, padded behind; over-long ones are cut.
    """
    device, was_training = next(model.parameters()).device, model.training
    limit = model.config.max_position_embeddings
    full = [np.array([begin, *ids, begin]) for ids in documents]
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
        input_ids, labels = line_up(taken, full).to(device)
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
    begin = tokenizer.eos_token_id
    ids = validation.encode(tokenizer)
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
def batch_nats(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Total loss in nats of the labeled tokens of each row: (rows,)."""
    ids = batch["document_ids"]
    mask = document_mask(ids) if ids.any() else None
    position_ids = batch["position_ids"]
    logits = model(batch["input_ids"], mask=mask, position_ids=position_ids)
    return cross_entropy(logits, batch["labels"], reduction="none").sum(1)


# %%
@dataclass
class TrainingConfig:
    """Settings of a training run, named as in Hugging Face's TrainingArguments."""

    output_dir: str = "runs/pretrain"
    """Folder for checkpoints, metrics.jsonl, tensorboard and final."""
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
    logging_steps: int = 10
    """A row in metrics.jsonl each so many steps."""
    eval_steps: int = 500
    """Validation each so many steps; 0: only before and after."""
    save_steps: int = 500
    """A checkpoint each so many steps; 0: only at the end."""
    save_total_limit: int = 2
    """How many of the last checkpoints are kept, besides the best."""
    seed: int = 0
    """Decides the order of the documents and the dropout."""
    precision: str = "auto"
    """float32, medium, bf16, or auto: what is fastest on this machine."""
    torch_compile: bool = False
    """Compile the model first: a minute's wait, then faster."""
    report_to: str = "tensorboard"
    """tensorboard, or wandb: Weights & Biases as well."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the best there is."""

    def __post_init__(self):
        check_training(self)


# %%
def constant_schedule(
    step: int,
    max_steps: int,
    learning_rate: float,
    warmup_steps: int = 0,
    min_learning_rate: float = 0.0,
) -> float:
    """Warm-up, then the same rate to the end."""
    return learning_rate * min(1.0, (step + 1) / max(1, warmup_steps))


SCHEDULES = {
    "linear": linear_schedule,
    "cosine": cosine_schedule,
    "constant": constant_schedule,
}


def learning_rate_at(config: TrainingConfig, step: int) -> float:
    """The rate of step 0, 1, ..., max_steps - 1."""
    schedule, low = SCHEDULES[config.lr_scheduler_type], config.min_learning_rate
    high, warm_up = config.learning_rate, config.warmup_steps
    return schedule(step, config.max_steps, high, warm_up, low)


# %%
OPTIMIZERS = ("adamw", "adamw_torch_fused")
COUNTS = (
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "context_length",
    "logging_steps",
    "save_total_limit",
)


def check_training(config: TrainingConfig) -> None:
    """Raise ValueError that names the first setting that cannot be."""
    precisions = (*PRECISIONS, "auto")
    choices = {"lr_scheduler_type": tuple(SCHEDULES), "precision": precisions}
    choices |= {"optim": OPTIMIZERS, "report_to": ("tensorboard", "wandb")}
    for name, allowed in choices.items():
        if (value := getattr(config, name)) not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
    for name in COUNTS:
        if (value := getattr(config, name)) < 1:
            raise ValueError(f"{name}={value} must be at least 1")


# %%
def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is a GPU, else Apple's MPS, else the CPU."""
    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    if name == "auto" and torch.backends.mps.is_available():
        name = "mps"
    device = torch.device("cpu" if name == "auto" else name)
    if device == torch.device("cuda"):
        return torch.device("cuda", local_rank)
    return device


# %%
@dataclass(frozen=True)
class Team:
    """The processes that train together: one, or as many as torchrun started."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def start(cls, device: str = "auto") -> "Team":
        told = ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)
        rank, world_size, local_rank = (int(os.environ.get(*pair)) for pair in told)
        chosen = pick_device(device, local_rank)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        if world_size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)
        return cls(rank, world_size, chosen)

    def sum(self, *values: float) -> list[float]:
        """Add up numbers over all processes: each gets the same totals."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients averaged over all processes."""
        if self.world_size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids)


# %%
def check_fit(model: Transformer, tokenizer, config: TrainingConfig) -> None:
    """Refuse a tokenizer or a context that the model has no room for."""
    shape = model.config
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer names no eos_token to begin documents with")
    if tokenizer.vocab_size > shape.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, "
            f"the model only vocab_size={shape.vocab_size}"
        )
    if config.context_length > shape.max_position_embeddings:
        raise ValueError(
            f"context_length={config.context_length} is more than the model's "
            f"max_position_embeddings={shape.max_position_embeddings}"
        )


def choose_precision(model: nn.Module, config: TrainingConfig, team: Team) -> str:
    """What "auto" means here: rank 0 measures, and all do the same."""
    rows, context = config.per_device_train_batch_size, config.context_length
    chosen = fastest_precision(model, rows=rows, context=context)
    vote = PRECISIONS.index(chosen) if team.rank == 0 else 0
    return PRECISIONS[int(team.sum(vote)[0])]


# %%
class Ahead:
    """Batches that a thread draws one ahead, pinned if they are to go to a GPU.

    What is handed out and what `state_dict` says are as without it.
    """

    def __init__(self, batches: Batches, pin: bool = False):
        self.batches, self.pin, self.next = batches, pin, None
        self.pool = ThreadPoolExecutor(1)
        self.note()

    def note(self) -> None:
        """Remember what the source says of itself after the last batch."""
        self.documents, self.epoch = self.batches.documents, self.batches.epoch
        self.state = self.batches.state_dict()

    def draw(self) -> dict[str, torch.Tensor]:
        batch = next(self.batches)
        return {k: x.pin_memory() for k, x in batch.items()} if self.pin else batch

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = self.next.result() if self.next else self.draw()
        self.note()
        self.next = self.pool.submit(self.draw)
        return batch

    def state_dict(self) -> dict[str, int]:
        return self.state

    def load_state_dict(self, state: dict[str, int]) -> None:
        if self.next:
            self.next.result()  # the thread must not draw from the new place
        self.next = None
        self.batches.load_state_dict(state)
        self.note()


# %%
def draw(batches: Batches | Ahead, passes: int) -> tuple[list[dict], list[list[int]]]:
    """The batches of one step, and the documents in each of their rows."""
    drawn, documents = [], []
    for _ in range(passes):
        drawn.append(next(batches))
        documents += batches.documents
    return drawn, documents


def count_labels(batches: list[dict]) -> int:
    """How many tokens of the batches are learned: all but the padding."""
    return sum(int((batch["labels"] != -100).sum()) for batch in batches)


def accumulate(
    model: nn.Module, batches: list[dict], tokens: int, team: Team, precision: str
) -> torch.Tensor:
    """Gradients of the mean loss over all `tokens` of the step; nats of each row.

    `tokens` are those of all passes and processes together, so each token weighs the
    same wherever it stands. DDP averages over processes: hence the factor. It does so
    in the last pass only.
    """
    nats = []
    for number, batch in enumerate(batches, 1):
        batch = {k: x.to(team.device, non_blocking=True) for k, x in batch.items()}
        wait = team.world_size > 1 and number < len(batches)
        with model.no_sync() if wait else nullcontext():
            with autocast(team.device, precision):
                rows = batch_nats(model, batch)
                (rows.sum() * (team.world_size / tokens)).backward()
        nats.append(rows.detach())
    return torch.cat(nats)


# %%
@dataclass
class Progress:
    """How far a run is: with the position in the data, all that is not a tensor."""

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

    def note_best(self) -> None:
        """Remember this step if it was just evaluated, and no other was better."""
        now, best = self.evaluation, self.best
        if now.get("step") == self.step:
            if best is None or now["eval_loss"] < best["eval_loss"]:
                self.best = {"step": self.step, "eval_loss": now["eval_loss"]}

    def row(self) -> dict:
        """Means over the steps since the last row."""
        tokens, seconds = self.tokens_since_log, self.seconds_since_log
        row = {
            "step": self.step,
            "loss": self.nats_since_log / tokens,
            "grad_norm": self.grad_norm,
            "tokens": self.tokens,
            "tokens_per_second": tokens / seconds,
        }
        self.nats_since_log, self.tokens_since_log = 0.0, 0
        self.seconds_since_log = 0.0
        return row


# %%
def make_optimizer(model: Transformer, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW of chapter 08, or torch's own form of it in one kernel."""
    groups = parameter_groups(model, config.weight_decay, config.embedding_lr_scale)
    betas = (config.adam_beta1, config.adam_beta2)
    if config.optim == "adamw_torch_fused":
        return torch.optim.AdamW(groups, config.learning_rate, betas, fused=True)
    return AdamW(groups, lr=config.learning_rate, betas=betas)


# %%
def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks for the next step; False if it can't.

    Changes no result, only the time: glibc's mallopt(3), M_MMAP_THRESHOLD (-3) and
    M_TRIM_THRESHOLD (-1). Other systems and libraries are left as they are.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        return False
    large = library.mallopt(-3, 1 << 30) or library.mallopt(-3, 1 << 25)  # old: 32 MB
    return bool(large and library.mallopt(-1, (1 << 31) - 1))


# %%
class Run:
    """What a training run consists of, and how it is saved and taken up again."""

    def __init__(
        self,
        model: Transformer,
        tokenizer,
        config: TrainingConfig,
        train_dataset,
        validation: Validation | None = None,
        callbacks: Iterable[object] = (),
        about: dict | None = None,
    ):
        check_fit(model, tokenizer, config)
        self.team = team = Team.start(config.device)
        self.model = self.forward = model.to(team.device)
        if team.device.type == "cpu":
            keep_freed_memory()
        self.tokenizer, self.config, self.dataset = tokenizer, config, train_dataset
        self.validation, self.callbacks = validation, list(callbacks)
        self.about, self.folder = about or {}, Path(config.output_dir)
        self.optimizer = make_optimizer(model, config)
        shape = config.per_device_train_batch_size, config.context_length
        ranks = team.rank, team.world_size
        batches = Batches(train_dataset, *shape, config.seed, *ranks)
        gpu = team.device.type == "cuda"
        self.batches = Ahead(batches, pin=True) if gpu else batches
        self.progress = Progress(precision=config.precision)
        order = {"context_length": config.context_length, "seed": config.seed}
        self.identity = identify(model, tokenizer, train_dataset, **order)

    @property
    def step(self) -> int:
        """How many updates the weights have had."""
        return self.progress.step

    def save(self) -> Path:
        """Write checkpoint-STEP, if this is the process that writes."""
        folder = self.folder / f"checkpoint-{self.step:06d}"
        if self.team.rank > 0 or self.progress.saved_step == self.step:
            return folder
        self.progress.saved_step = self.step
        state = {
            "progress": asdict(self.progress),
            "batches": self.batches.state_dict(),
            "config": asdict(self.config),
            "identity": self.identity,
        }
        save_checkpoint(folder, self.model, self.tokenizer, self.optimizer, state)
        return folder

    def load(self, folder: Path, state: dict) -> None:
        """Take up a checkpoint; ValueError if it belongs to another run."""
        if differences := find_differences(state["identity"], self.identity):
            raise ValueError(f"can't go on from {folder}: " + "; ".join(differences))
        self.model.load_state_dict(Transformer.from_pretrained(folder).state_dict())
        load_optimizer(self.model, self.optimizer, folder / "optimizer.safetensors")
        self.batches.load_state_dict(state["batches"])
        self.progress = Progress(**state["progress"])
        if self.config.precision != "auto":
            self.progress.precision = self.config.precision


# %%
def train_step(run: Run) -> None:
    """One update of the weights: draw, accumulate, clip, check, step.

    The seed of dropout is a function of run, step and rank, so that there is no
    generator whose state could be lost. FloatingPointError, after saving the weights
    from before, if loss or gradient is not a number.
    """
    start, config, team = time.perf_counter(), run.config, run.team
    position = run.batches.state_dict()
    batches, documents = draw(run.batches, config.gradient_accumulation_steps)
    tokens = int(team.sum(count_labels(batches))[0])
    seed = np.random.SeedSequence([config.seed, run.step, team.rank])
    torch.manual_seed(int(seed.generate_state(1)[0]))
    set_learning_rate(run.optimizer, learning_rate_at(config, run.step))
    run.model.train()
    run.optimizer.zero_grad()
    nats = accumulate(run.forward, batches, tokens, team, run.progress.precision)
    (total,) = team.sum(math.fsum(nats.tolist()))
    norm = clip_grad_norm(run.model.parameters(), config.max_grad_norm).item()
    if not math.isfinite(total + norm):
        run.batches.load_state_dict(position)
        reason = describe_failure(nats, norm, documents)
        name = run.save().name
        raise FloatingPointError(f"step {run.step + 1}: {reason}; {name} is unharmed")
    run.optimizer.step()
    run.progress.add(total, tokens, norm, time.perf_counter() - start)


# %%
class WatchedRun(Run):
    """A run that measures itself, writes that down, and tells its callbacks."""

    log: RunLog | None = None  # only the process that writes has one

    def prepare(self, resume: bool) -> None:
        """Take up the last checkpoint, or start; open the log; wrap the model."""
        config, team = self.config, self.team
        found = last_checkpoint(self.folder)
        if found and not resume:
            raise ValueError(f"{self.folder} holds a run: choose another output_dir")
        if found:
            self.load(*found)
        if self.progress.precision == "auto":
            self.progress.precision = choose_precision(self.model, config, team)
        if team.rank == 0:
            if found:
                print(describe_resume(*found, asdict(config)))
            self.log = open_log(self, self.step if found else -1)
        self.forward = team.wrap(self.model)
        if config.torch_compile:
            self.forward = torch.compile(self.forward)

    def tell(self, event: str, *arguments: object) -> None:
        """Call the callbacks; what they draw at random does not disturb training."""
        device = self.team.device
        if self.team.rank == 0:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                for callback in self.callbacks:
                    if hasattr(callback, event):
                        getattr(callback, event)(self, *arguments)

    def measure(self) -> dict:
        """Log the loss since the last row, and what explains it."""
        row = self.progress.row()
        row["learning_rate"] = learning_rate_at(self.config, self.step - 1)
        row["epoch"] = self.batches.epoch
        row["memory"] = peak_memory(self.team.device)
        forward = count_flops(self.model.config, self.config.context_length)
        row["flops_per_second"] = speed = 3 * forward * row["tokens_per_second"]
        each = speed / self.team.world_size  # of one device
        row |= gpu_columns(self.team.device, self.progress.precision, each)
        self.tell("on_log", row)
        if self.log:
            self.log.write(row)
        return row

    def evaluate(self) -> None:
        """Log the loss on the validation documents."""
        if self.validation and self.log:
            found = evaluate(self.model, self.tokenizer, self.validation)
            row = {f"eval_{name}": value for name, value in found.items()}
            self.progress.evaluation = row = {"step": self.step, **row}
            self.tell("on_evaluate", row)
            self.log.write(row)
            tqdm.write(describe_evaluation(row))

    def keep(self) -> None:
        """Save; of all checkpoints, leave the last few and the best."""
        self.progress.note_best()
        folder, best = self.save(), self.progress.best
        if self.log:
            kept = best and f"checkpoint-{best['step']:06d}"
            prune_checkpoints(self.folder, self.config.save_total_limit, kept)
            self.tell("on_save", folder)


# %%
def is_due(step: int, every: int, config: TrainingConfig) -> bool:
    """Whether what is done each so many steps is due; at the end all is."""
    return step == config.max_steps or (every > 0 and step % every == 0)


def explain_failure(error: RuntimeError, config: TrainingConfig) -> Exception:
    """The error that says what to change, where that is known; else the same."""
    if is_out_of_memory(error):
        return MemoryError(f"out of memory. {describe_memory(config)}")
    if config.torch_compile and type(error).__module__.startswith("torch._"):
        first = str(error).partition("\n")[0]
        return ValueError(f"torch_compile fails here, leave it out: {first}")
    return error


def show_progress(bar: tqdm, row: dict) -> None:
    """Loss and speed beside the bar."""
    speed = f"{row['tokens_per_second']:,.0f}"
    bar.set_postfix({"loss": f"{row['loss']:.3f}", "tokens/s": speed})


# %%
class Trainer(WatchedRun):
    """Train a model, watch it, and never lose more than the steps since the last save.

    `train_dataset` is what `Batches` takes. A callback is an object with any of
    on_log(trainer, row), on_evaluate(trainer, row) and on_save(trainer, folder); what
    it adds to `row` is logged. `about`: rows for the model card that only the caller
    knows, such as where the data comes from; "command" begins its command line.
    """

    stopping = ""

    def train(self, resume: bool = True) -> dict:
        """Train to max_steps, going on from the last checkpoint if there is one.

        Ctrl-C, SIGTERM and stop() finish the step, save, and return. Returns the step,
        why it stopped ("" if it did not), and the last evaluation.
        """
        self.stopping = ""
        self.prepare(resume)
        quiet = {"disable": True} if self.team.rank else {}  # else TQDM_DISABLE decides
        bar = tqdm(total=self.config.max_steps, initial=self.step, **quiet)
        try:
            with catch_signals(self.stop), bar:
                self.loop(bar)
        except RuntimeError as error:
            raise explain_failure(error, self.config) from error
        finally:
            if self.log:
                self.log.close()
        result = {"step": self.step, "stopped": self.stopping}
        return {**self.progress.evaluation, **result}

    def stop(self, reason: str = "stop()") -> None:
        """Finish the step, save, and return from train(): for callbacks and signals."""
        self.stopping = reason

    def loop(self, bar: tqdm) -> None:
        """Steps, and what is due after each, until the end or until told to stop."""
        config = self.config
        if not self.progress.evaluation:
            self.evaluate()
        while self.step < config.max_steps:
            if self.team.sum(bool(self.stopping))[0]:
                self.keep()
                tqdm.write(f"stopped by {self.stopping} after step {self.step}; saved")
                return
            train_step(self)
            bar.update()
            if is_due(self.step, config.logging_steps, config):
                show_progress(bar, self.measure())
            if is_due(self.step, config.eval_steps, config):
                self.evaluate()
            if is_due(self.step, config.save_steps, config):
                self.keep()
        write_final(self)
