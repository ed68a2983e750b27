"""Batches, the training loop, watching it, and checkpoints to relay from."""

# Generated from notebooks/09_pretraining.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "WINDOW_ROWS",
    "SCHEDULES",
    "TokenFile",
    "pack",
    "Batches",
    "Validation",
    "token_losses",
    "evaluate",
    "TrainingConfig",
    "constant_schedule",
    "pick_device",
    "Team",
    "check_fit",
    "to_device",
    "batch_nats",
    "describe_evaluation",
    "Trainer",
]

# %%
import atexit
import bisect
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from minillm.attention import document_mask
from minillm.data import bits_per_byte, read_jsonl, remove, write_atomic
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
    find_differences,
    fingerprint_data,
    identify,
    last_checkpoint,
    list_checkpoints,
    load_optimizer,
    save_checkpoint,
)
from minillm.run_log import RunLog, peak_memory, write_model_card
from minillm.transformer import Transformer


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
class Batches:
    """Endless batches of whole documents, in a new random order each epoch.

    A window of documents in that order is packed into rows of `context`, and its rows
    are shuffled. Of each global batch of world_size * rows rows, this rank gets `rows`
    neighbours. A batch is a dict of (rows, context) int64 tensors: input_ids; labels,
    -100 at padding; position_ids, from 0 in each document; document_ids, -1 at padding.
    Longer documents are cut into pieces. The position is a row number, so a state fits
    any number of rows and ranks.
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
        self.dataset, self.rows, self.context, self.seed = dataset, rows, context, seed
        self.rank, self.world_size = rank, world_size
        lengths = np.asarray(dataset.lengths, dtype=np.int64)
        pieces = -(-lengths // context)
        self.document = np.repeat(np.arange(len(lengths)), pieces)
        self.start = np.arange(len(self.document)) - np.repeat(
            np.cumsum(pieces) - pieces, pieces
        )
        self.start *= context
        self.length = np.minimum(lengths[self.document] - self.start, context)
        if not len(self.length):
            raise ValueError("there are no documents to train on")
        self.window = max(16, int(WINDOW_ROWS * context / self.length.mean()))
        self.orders, self.queue = {}, []
        self.next_window = self.next_row = 0
        self.documents: list[list[int]] = []  # of each row of the last batch

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self

    def __next__(self) -> dict[str, torch.Tensor]:
        team = [self.take_row() for _ in range(self.world_size * self.rows)]
        rows = team[self.rank * self.rows : (self.rank + 1) * self.rows]
        self.documents = [self.document[row].tolist() for row in rows]
        return self.collate(rows)

    def take_row(self) -> np.ndarray:
        """The pieces of the next row of the one stream that all ranks share."""
        if self.next_row == len(self.queue):
            self.queue = self.pack_window(self.next_window)
            self.next_window, self.next_row = self.next_window + 1, 0
        self.next_row += 1
        return self.queue[self.next_row - 1]

    def order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:
            random = np.random.default_rng([self.seed, epoch])
            last = {k: v for k, v in self.orders.items() if k == epoch - 1}
            self.orders = last | {epoch: random.permutation(len(self.length))}
        return self.orders[epoch]

    def pack_window(self, number: int) -> list[np.ndarray]:
        epochs, places = np.divmod(
            np.arange(number * self.window, (number + 1) * self.window),
            len(self.length),
        )
        chosen = np.concatenate(
            [self.order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        )
        rows = pack(self.length[chosen].tolist(), self.context)
        random = np.random.default_rng([self.seed, number, 1])
        return [chosen[rows[i]] for i in random.permutation(len(rows))]

    def collate(self, rows: list[np.ndarray]) -> dict[str, torch.Tensor]:
        blank = dict(input_ids=0, labels=-100, position_ids=0, document_ids=-1)
        shape = (len(rows), self.context)
        batch = {name: np.full(shape, value) for name, value in blank.items()}
        for r, row in enumerate(rows):
            begin = 0
            for d, piece in enumerate(row):
                input_ids, labels = self.dataset[int(self.document[piece])]
                first, length = self.start[piece], self.length[piece]
                here, there = slice(begin, begin + length), slice(first, first + length)
                batch["input_ids"][r, here] = input_ids[there]
                batch["labels"][r, here] = labels[there]
                batch["position_ids"][r, here] = np.arange(length)
                batch["document_ids"][r, here] = d
                begin += length
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    @property
    def epoch(self) -> float:
        """How often the data has been gone through."""
        done = self.next_row / len(self.queue) if self.queue else 0
        windows = max(0, self.next_window - 1) + done
        return windows * self.window / len(self.length)

    def state_dict(self) -> dict[str, int]:
        return {"next_window": self.next_window, "next_row": self.next_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.next_window, self.next_row = state["next_window"], state["next_row"]
        last = self.next_window - 1
        self.queue = self.pack_window(last) if self.next_window else []


WINDOW_ROWS = 256  # about so many rows are packed together


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
@torch.no_grad()
def token_losses(
    model: nn.Module,
    documents: Sequence[Sequence[int]],
    begin: int,
    batch_tokens: int = 4096,
    precision: str = "float32",
) -> list[np.ndarray]:
    """Nats of every token of every document, its end included, each document ALONE.

    A document is seen from the begin token, in rows with others of similar length,
    padded on the right, where causal attention can't see. One longer than the model's
    context is scored in pieces.
    """
    device, was_training = next(model.parameters()).device, model.training
    limit = model.config.max_position_embeddings
    full = [np.array([begin, *ids, begin]) for ids in documents]
    losses = [np.zeros(len(ids) - 1) for ids in full]
    pieces = [
        (min(limit, len(ids) - 1 - start), i, start)
        for i, ids in enumerate(full)
        for start in range(0, len(ids) - 1, limit)
    ]
    pieces.sort()
    model.eval()
    while pieces:
        longest = pieces[-1][0]
        taken = pieces[-max(1, batch_tokens // longest) :]
        del pieces[-len(taken) :]
        batch = torch.full((2, len(taken), longest), -100)
        for row, (length, i, start) in enumerate(taken):
            piece = torch.from_numpy(full[i][start : start + length + 1])
            batch[0, row, :length], batch[1, row, :length] = piece[:-1], piece[1:]
        input_ids, labels = batch[0].clamp(min=0).to(device), batch[1].to(device)
        with autocast(device, precision):
            nats = cross_entropy(model(input_ids), labels, reduction="none")
        for row, (length, i, start) in zip(nats.cpu().numpy(), taken, strict=True):
            losses[i][start : start + length] = row[:length]
    model.train(was_training)
    return losses


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
@dataclass
class TrainingConfig:
    """Settings of a training run, named as in Hugging Face's TrainingArguments."""

    output_dir: str = "runs/pretrain"
    """Folder for checkpoints, metrics.jsonl, tensorboard and final."""
    max_steps: int = 1000
    """How many times the weights are updated."""
    per_device_train_batch_size: int = 8
    """Rows of context_length tokens in one forward pass on one device."""
    gradient_accumulation_steps: int = 1
    """Forward and backward passes for one update."""
    context_length: int = 256
    """Tokens in a row."""
    learning_rate: float = 3e-3
    """The highest rate, reached at the end of the warm-up."""
    min_learning_rate: float = 0.0
    """What the rate falls to at the end."""
    warmup_steps: int = 50
    """Steps over which the rate rises from near 0."""
    lr_scheduler_type: str = "linear"
    """How the rate falls after the warm-up: linear, cosine or constant."""
    embedding_lr_scale: float = 1.0
    """The token embedding learns at this multiple of the rate."""
    weight_decay: float = 0.1
    """AdamW's decay of the weight matrices."""
    adam_beta1: float = 0.9
    """Memory of AdamW's mean of the gradients."""
    adam_beta2: float = 0.95
    """Memory of AdamW's mean of their squares."""
    max_grad_norm: float = 1.0
    """Longer gradients are scaled down to this norm."""
    logging_steps: int = 10
    """A row in metrics.jsonl each so many steps."""
    eval_steps: int = 250
    """Validation each so many steps; 0: only before and after."""
    save_steps: int = 250
    """A checkpoint each so many steps; 0: only at the end."""
    save_total_limit: int = 2
    """How many of the last checkpoints are kept, besides the best."""
    seed: int = 0
    """Decides the order of the documents and the dropout."""
    precision: str = "auto"
    """float32, medium, bf16, or auto: what is fastest on this machine."""
    torch_compile: bool = False
    """Compile the model first: a minute's wait, then faster."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the best there is."""

    def __post_init__(self):
        choices = {
            "lr_scheduler_type": tuple(SCHEDULES),
            "precision": (*PRECISIONS, "auto"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        at_least_1 = (
            "max_steps per_device_train_batch_size gradient_accumulation_steps "
            "context_length logging_steps save_total_limit"
        )
        for name in at_least_1.split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..., max_steps - 1."""
        schedule = SCHEDULES[self.lr_scheduler_type]
        low = self.min_learning_rate
        return schedule(
            step, self.max_steps, self.learning_rate, self.warmup_steps, low
        )


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


# %%
def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is a GPU, else Apple's MPS, else the CPU."""
    if name == "auto" and torch.cuda.is_available():
        name = "cuda"
    if name == "auto" and torch.backends.mps.is_available():
        name = "mps"
    device = torch.device("cpu" if name == "auto" else name)
    return (
        torch.device("cuda", local_rank) if device == torch.device("cuda") else device
    )


@dataclass(frozen=True)
class Team:
    """The processes that train together: one, or as many as torchrun started."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def start(cls, device: str = "auto") -> "Team":
        rank, world_size, local_rank = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
        )
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


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to the device; to a GPU from pinned memory, while it computes."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


# %%
def batch_nats(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Total loss in nats of the labelled tokens of each row: (rows,)."""
    ids = batch["document_ids"]
    mask = document_mask(ids) if ids.any() else None
    position_ids = batch["position_ids"]
    logits = model(batch["input_ids"], mask=mask, position_ids=position_ids)
    return cross_entropy(logits, batch["labels"], reduction="none").sum(1)


# %%
def describe_evaluation(row: dict) -> str:
    """One line for the console: step, loss, bits per byte, and the floor if known."""
    text = f"step {row['step']}: validation loss {row['eval_loss']:.2f}, "
    text += f"{row['eval_bits_per_byte']:.3f} bits per byte"
    above = row["eval_above_floor"]
    return text if above is None else f"{text}, {above:.1f} % above the floor"


# %%
class Trainer:
    """Train a model, watch it, and never lose more than the steps since the last save.

    `train_dataset` is what `Batches` takes; `validation` a `Validation`; a callback is
    an object with any of on_log(trainer, row), on_evaluate(trainer, row) and
    on_save(trainer, folder). What a callback adds to `row` is logged. `about`: rows for
    the model card that only the caller knows, such as where the data comes from.
    """

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
        self.config, self.tokenizer = config, tokenizer
        self.callbacks, self.about = list(callbacks), about or {}
        self.dataset, self.validation = train_dataset, validation
        check_fit(model, tokenizer, config)
        self.team = Team.start(config.device)
        self.model = self.forward = model.to(self.team.device)
        self.optimizer = AdamW(
            parameter_groups(model, config.weight_decay, config.embedding_lr_scale),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        self.batches = Batches(
            train_dataset,
            config.per_device_train_batch_size,
            config.context_length,
            config.seed,
            self.team.rank,
            self.team.world_size,
        )
        self.folder = Path(config.output_dir)
        self.precision = config.precision
        self.step = self.tokens = 0
        self.since_log = {"nats": 0.0, "tokens": 0, "seconds": 0.0}
        self.best: dict | None = None
        self.evaluation: dict = {}
        self.saved_step = -1
        self.stopping = ""
        self.log: RunLog | None = None

    def train(self, resume: bool = True) -> dict:
        """Train to max_steps, going on from the last checkpoint if there is one.

        Ctrl-C, SIGTERM and stop() finish the step, save, and return. Returns the step,
        why it stopped ("" if it did not), and the last evaluation.
        """
        config, self.stopping = self.config, ""
        self.prepare(resume)
        quiet = {"disable": True} if self.helper else {}  # else TQDM_DISABLE decides
        bar = tqdm(total=config.max_steps, initial=self.step, **quiet)
        try:
            with catch_signals(self.stop), bar:
                if not self.evaluation:
                    self.evaluate()
                while self.step < config.max_steps and not self.must_stop():
                    self.train_step()
                    bar.update()
                    self.after_step(bar)
                if self.stopping:
                    self.save()
                elif self.step == config.max_steps:
                    self.finish()
        except torch.OutOfMemoryError as error:
            raise RuntimeError(self.out_of_memory()) from error
        finally:
            if self.log:
                self.log.close()
        if self.stopping and not self.helper:
            print(f"stopped by {self.stopping} after step {self.step}, and saved")
        return {**self.evaluation, "step": self.step, "stopped": self.stopping}

    def stop(self, reason: str = "stop()") -> None:
        """Finish the step, save, and return from train(): for callbacks and signals."""
        self.stopping = reason

    def out_of_memory(self) -> str:
        """What to change, so that the same training needs half the memory."""
        rows = self.config.per_device_train_batch_size
        passes = self.config.gradient_accumulation_steps
        return (
            f"out of memory with {rows} rows of {self.config.context_length} tokens. "
            f"The same training in smaller passes: per_device_train_batch_size="
            f"{max(1, rows // 2)}, gradient_accumulation_steps={passes * 2}"
        )

    def must_stop(self) -> bool:
        return self.team.sum(float(bool(self.stopping)))[0] > 0

    @property
    def helper(self) -> bool:
        """Whether another process does the writing."""
        return self.team.rank > 0

    def prepare(self, resume: bool) -> None:
        """Load the last checkpoint, or start; open the log; wrap the model."""
        found = last_checkpoint(self.folder)
        if found and not resume:
            raise ValueError(f"{self.folder} holds a run: choose another output_dir")
        if found:
            self.load(*found)
        if self.precision == "auto":
            self.precision = self.probe_precision()
        if not self.helper:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in [*self.folder.glob(".tmp-*"), *self.folder.glob(".old-*")]:
                remove(left)  # of a process that was killed while it wrote
            self.log = RunLog(self.folder, self.step if found else -1)
        self.forward = self.team.wrap(self.model)
        if self.config.torch_compile:
            self.forward = torch.compile(self.forward)

    def probe_precision(self) -> str:
        config = self.config
        rows, context = config.per_device_train_batch_size, config.context_length
        chosen = fastest_precision(self.model, rows=rows, context=context)
        mine = 0 if self.helper else PRECISIONS.index(chosen)
        return PRECISIONS[int(self.team.sum(mine)[0])]

    def train_step(self) -> None:
        """One update: all passes of the step, weighted by their share of its tokens."""
        start, config, team = time.perf_counter(), self.config, self.team
        position, passes, documents = self.batches.state_dict(), [], []
        for _ in range(config.gradient_accumulation_steps):
            passes.append(next(self.batches))
            documents.append(self.batches.documents)
        labelled = sum(int((batch["labels"] != -100).sum()) for batch in passes)
        tokens = int(team.sum(labelled)[0])
        seed = np.random.SeedSequence([config.seed, self.step, team.rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))  # for dropout
        set_learning_rate(self.optimizer, config.rate(self.step))
        self.optimizer.zero_grad()
        self.model.train()
        nats = []
        for number, batch in enumerate(passes, 1):
            batch = {k: to_device(v, team.device) for k, v in batch.items()}
            with self.gradients_shared(number == len(passes)):
                with autocast(team.device, self.precision):
                    each = batch_nats(self.forward, batch)
                    (each.sum() * (team.world_size / tokens)).backward()
            nats.append(each.detach())
        (total,) = team.sum(math.fsum(torch.cat(nats).tolist()))
        norm = clip_grad_norm(self.model.parameters(), config.max_grad_norm).item()
        if not (math.isfinite(total) and math.isfinite(norm)):
            self.batches.load_state_dict(position)
            self.give_up(torch.cat(nats), sum(documents, []), total / tokens, norm)
        self.optimizer.step()
        self.step, self.tokens, self.grad_norm = (
            self.step + 1,
            self.tokens + tokens,
            norm,
        )
        spent = time.perf_counter() - start
        for name, value in zip(self.since_log, (total, tokens, spent), strict=True):
            self.since_log[name] += value

    def gradients_shared(self, last: bool):
        """DDP averages gradients only after the last pass of a step."""
        wait = self.team.world_size > 1 and not last
        return self.forward.no_sync() if wait else nullcontext()

    def give_up(
        self, nats: torch.Tensor, documents: list, loss: float, norm: float
    ) -> None:
        """The numbers are broken: save the weights from before, and name the batch."""
        bad = [
            row for row, value in enumerate(nats.tolist()) if not math.isfinite(value)
        ]
        rows = [documents[row] for row in bad or range(len(documents))]
        folder = self.save()
        raise FloatingPointError(
            f"step {self.step + 1}: loss {loss}, gradient norm {norm}; {len(bad)} of "
            f"{len(documents)} rows are not finite. Their documents: "
            f"{sorted(sum(rows, []))}. Weights from before this step: {folder.name}"
        )

    def after_step(self, bar: tqdm) -> None:
        config, last = self.config, self.step == self.config.max_steps
        if self.step % config.logging_steps == 0 or last:
            self.log_row(bar)
        if last or (config.eval_steps and self.step % config.eval_steps == 0):
            self.evaluate()
        if last or (config.save_steps and self.step % config.save_steps == 0):
            self.save()

    def log_row(self, bar: tqdm) -> None:
        since = self.since_log
        row = {
            "step": self.step,
            "loss": since["nats"] / since["tokens"],
            "learning_rate": self.config.rate(self.step - 1),
            "grad_norm": self.grad_norm,
            "epoch": self.batches.epoch,
            "tokens": self.tokens,
            "tokens_per_second": since["tokens"] / since["seconds"],
            "memory": peak_memory(self.team.device),
        }
        self.since_log = dict.fromkeys(since, 0)
        speed = f"{row['tokens_per_second']:,.0f}"
        bar.set_postfix({"loss": f"{row['loss']:.3f}", "tokens/s": speed})
        self.tell("on_log", row)
        if self.log:
            self.log.write(row)

    def evaluate(self) -> None:
        if self.validation is None or self.helper:
            return
        found = evaluate(self.model, self.tokenizer, self.validation)
        named = {f"eval_{name}": value for name, value in found.items()}
        self.evaluation = {"step": self.step, **named}
        self.tell("on_evaluate", self.evaluation)
        self.log.write(self.evaluation)
        tqdm.write(describe_evaluation(self.evaluation))

    def tell(self, event: str, *arguments: object) -> None:
        """Call the callbacks; what they draw at random does not disturb training."""
        if not self.helper:
            gpu = self.team.device.type == "cuda"
            with torch.random.fork_rng([self.team.device] if gpu else []):
                for callback in self.callbacks:
                    if hasattr(callback, event):
                        getattr(callback, event)(self, *arguments)

    def state_dict(self) -> dict:
        """All that is not a tensor. The schedule is a function of the step."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "batches": self.batches.state_dict(),
            "since_log": self.since_log,
            "best": self.best,
            "evaluation": self.evaluation,
            "precision": self.precision,
            "config": asdict(self.config),
            "identity": self.identity(),
        }

    def identity(self) -> dict:
        order = {
            name: getattr(self.config, name) for name in ("context_length", "seed")
        }
        return identify(self.model, self.tokenizer, self.dataset, **order)

    def load(self, folder: Path, state: dict) -> None:
        """Take up a checkpoint, unless it belongs to another run."""
        now = self.identity()
        if differences := find_differences(state["identity"], now):
            raise ValueError(f"can't go on from {folder}: " + "; ".join(differences))
        if not self.helper:
            print(f"going on from {folder.name}")
            for line in find_differences(state["config"], asdict(self.config)):
                print(f"  setting changed: {line}")
        weights = Transformer.from_pretrained(folder).state_dict()
        self.model.load_state_dict(weights)
        load_optimizer(self.model, self.optimizer, folder / "optimizer.safetensors")
        self.batches.load_state_dict(state["batches"])
        for name in ("step", "tokens", "since_log", "best", "evaluation"):
            setattr(self, name, state[name])
        self.saved_step = self.step
        if self.precision == "auto":
            self.precision = state["precision"]

    def save(self) -> Path:
        """Write checkpoint-STEP; keep the last few and the best."""
        folder = self.folder / f"checkpoint-{self.step:06d}"
        if self.helper or self.saved_step == self.step:
            return folder
        if self.evaluation.get("step") == self.step:
            loss = self.evaluation["eval_loss"]
            if self.best is None or loss < self.best["eval_loss"]:
                self.best = {"step": self.step, "eval_loss": loss}
        parts = (self.model, self.tokenizer, self.optimizer)
        save_checkpoint(folder, *parts, self.state_dict())
        self.saved_step = self.step
        best = self.best and f"checkpoint-{self.best['step']:06d}"
        for path in list_checkpoints(self.folder)[: -self.config.save_total_limit]:
            if path.name != best:
                remove(path)
        self.tell("on_save", folder)
        return folder

    def finish(self) -> None:
        """Write final/: the model alone, with its card."""
        if self.helper:
            return
        with write_atomic(self.folder / "final") as temporary:
            temporary.mkdir()
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            write_model_card(temporary, self.facts(), command=self.command())

    def facts(self) -> dict:
        """What the model card says of this run: the data, the amounts, the results."""
        data, found = self.dataset, self.evaluation
        tokens = f"{len(data)} documents, {int(np.sum(data.lengths))} tokens"
        facts = {
            **self.about,
            "parameters": self.model.num_parameters(),
            "training data": f"{tokens}, hash {fingerprint_data(data)}",
            "tokens seen": self.tokens,
            "passes over the data": round(self.batches.epoch, 2),
            "steps": self.step,
            "seed": self.config.seed,
            "precision": self.precision,
            "validation loss (nats per token)": found.get("eval_loss"),
            "bits per byte": found.get("eval_bits_per_byte"),
            "lowest possible bits per byte": found.get("eval_floor"),
            "per cent above it": found.get("eval_above_floor"),
        }
        return {name: value for name, value in facts.items() if value is not None}

    def command(self) -> str:
        """The command line that repeats this run's settings."""
        here = ("output_dir", "device")
        changed = [
            f"--{field.name} {getattr(self.config, field.name)}"
            for field in fields(self.config)
            if field.name not in here
            and getattr(self.config, field.name) != field.default
        ]
        return " ".join(["minillm pretrain", *changed])
