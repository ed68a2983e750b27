"""A whole training run in a folder: chapter 09's loop and all that is beside it."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minillm.app.memory import check_memory, explain_failure, memory_needed
from minillm.pretraining import (
    Batches,
    EvalCallback,
    LogCallback,
    Trainer,
    TrainingConfig,
    Validation,
    collate,
    count_labels,
    next_token_loss,
)
from minillm.relay import Checkpoints, identify, save_weights
from minillm.scaling_out import Processes
from minillm.support.card import write_model_card
from minillm.support.checkpoints import list_checkpoints
from minillm.support.devices import pick_device, memory_there
from minillm.support.files import write_atomic
from minillm.support.log import RunLog, log_settings, open_wandb
from minillm.support.prefetch import Prefetch
from minillm.support.signals import catch_signals
from minillm.transformer import count_flops


@dataclass
class RunConfig(TrainingConfig):
    """Settings of a run: those of the loop, and where, how often and with what."""

    output_dir: str = "runs/pretrain"
    """Folder for checkpoints, metrics.jsonl, tensorboard and final."""
    logging_steps: int = 10
    """Steps between two rows of metrics.jsonl."""
    eval_steps: int = 500
    """Steps between two evaluations; 0: only before and after training."""
    save_steps: int = 500
    """Steps between two checkpoints; 0: only at the end."""
    save_total_limit: int = 2
    """How many recent checkpoints to keep, besides the best."""
    torch_compile: bool = False
    """Compile the model first: a minute's wait, then faster."""
    report_to: str = "tensorboard"
    """tensorboard, or wandb: Weights & Biases as well."""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the best that is available."""

    def __post_init__(self):
        super().__post_init__()
        pick_device(self.device)  # ValueError if it is not on this machine
        for name in ("logging_steps", "save_total_limit"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.report_to not in ("tensorboard", "wandb"):
            text = f"report_to={self.report_to!r} is not one of tensorboard, wandb"
            raise ValueError(text)


class Run:
    """A trainer with checkpoints, a log, evaluations and a model card, in one folder.

    `train_dataset` is what `Batches` takes; `loss`, `count` and `collate` are as in
    `Trainer` and `Batches`. `callbacks` may add to the rows that are logged. `about`:
    rows for the model card that only the caller knows; "command" begins its command
    line. ValueError if the tokenizer or the context does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        config: RunConfig,
        train_dataset,
        validation: Validation | None = None,
        callbacks: Iterable[object] = (),
        about: dict | None = None,
        loss: Callable = next_token_loss,
        count: Callable = count_labels,
        collate: Callable = collate,
    ):
        check_fit(model, tokenizer, config)
        self.processes = processes = Processes(config.device)
        self.model, self.tokenizer = model.to(processes.device), tokenizer
        self.config, self.dataset, self.validation = config, train_dataset, validation
        self.callbacks, self.about = list(callbacks), about or {}
        self.folder = Path(config.output_dir)
        rows, context = config.per_device_train_batch_size, config.context_length
        ranks = processes.rank, processes.world_size
        batches = Batches(train_dataset, rows, context, config.seed, *ranks, collate)
        if processes.device.type == "cuda":
            batches = Prefetch(batches, pin=True)
        self.trainer = Trainer(
            model, config, batches, loss, count, processes=processes, wrap=self.wrap
        )
        order = {"context_length": context, "seed": config.seed}
        self.identity = identify(model, tokenizer, train_dataset, **order)
        self.rows: list[dict] = []  # of metrics.jsonl, once `train` is called

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as several processes train it, compiled if that was asked for."""
        model = self.processes.wrap(model)
        return torch.compile(model) if self.config.torch_compile else model

    def train(self, resume: bool = True) -> dict:
        """Train to max_steps, from the last checkpoint if there is one, and finish.

        Ctrl-C, SIGTERM and `trainer.stop()` finish the step, save, and return. Returns
        the step, why it stopped ("" if it did not), and the last evaluation.
        """
        config, trainer = self.config, self.trainer
        if not resume and list_checkpoints(self.folder):
            raise ValueError(f"{self.folder} holds a run: choose another output_dir")
        limit, settings = config.save_total_limit, asdict(config)
        checkpoints = Checkpoints(
            self.folder,
            self.tokenizer,
            config.save_steps,
            limit,
            self.identity,
            settings,
        )
        found = checkpoints.resume(trainer)
        trainer.choose_precision()
        with ExitStack() as stack:
            if writes := self.processes.rank == 0:
                log = self.open_log(trainer.step if found else -1)
                stack.enter_context(closing(log))
                bar = tqdm(total=config.max_steps, initial=trainer.step)
                stack.enter_context(bar)
                trainer.callbacks = [*self.parts(), Report(log, bar), checkpoints]
            stack.enter_context(catch_signals(trainer.stop))
            try:
                result = trainer.train()
            except RuntimeError as error:
                raise explain_failure(error, config) from error
            if writes and trainer.step >= config.max_steps:
                self.write_final()
        return result

    def parts(self) -> list[object]:
        """The callbacks that measure, in the order in which they are called."""
        flops = count_flops(self.model.config, self.config.context_length)
        parts = [LogCallback(self.config.logging_steps, flops)]
        if self.validation:
            every = self.config.eval_steps
            parts.append(EvalCallback(self.tokenizer, self.validation, every))
        return [*parts, *self.callbacks]

    def open_log(self, step: int) -> RunLog:
        """Warn or refuse if the run can't fit; then open its log after this step."""
        there = memory_there(self.processes.device)
        for line in (
            check_memory(self.memory_needed(), there, self.config),
            describe_amount(int(sum(self.dataset.lengths)), self.config),
        ):
            if line:
                print(line)
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = asdict(self.config)
        wandb = self.config.report_to == "wandb"
        also = [open_wandb(self.folder, settings)] if wandb else []
        log = RunLog(self.folder, step, also)
        log_settings(log, settings)
        self.rows = log.rows
        return log

    def memory_needed(self) -> dict[str, int]:
        """Bytes by purpose; what is frozen has neither gradients nor moments."""
        sizes = [(p.numel(), p.requires_grad) for p in self.model.parameters()]
        share = sum(size for size, trains in sizes if trains) / sum(s for s, _ in sizes)
        needs = memory_needed(self.model.config, self.config)
        return needs | {k: int(needs[k] * share) for k in ("gradients", "optimizer")}

    def write_final(self) -> None:
        """Write final/: the model and its tokenizer without training state; a card."""
        with write_atomic(self.folder / "final") as temporary:
            temporary.mkdir()
            saved = save_weights(self.model, temporary)
            self.tokenizer.save_pretrained(temporary)
            facts = self.card_facts() | (
                {} if saved == "all weights" else {"saved": saved}
            )
            command = describe_command(self.config, facts.pop("command"))
            write_model_card(temporary, facts, command=command)

    def card_facts(self) -> dict:
        """What the model card says of a run: the data, the amounts, the results."""
        data, progress = self.dataset, self.trainer.progress
        size = f"{len(data)} documents, {int(sum(data.lengths))} tokens"
        found = progress.evaluation
        facts = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "training data": f"{size}, hash {self.identity['corpus']}",
            "tokens seen": progress.tokens,
            "passes over the data": round(self.trainer.batches.epoch, 2),
            "steps": progress.step,
            "seed": self.config.seed,
            "precision": progress.precision,
            "validation loss (nats per token)": found.get("eval_loss"),
            "bits per byte": found.get("eval_bits_per_byte"),
            "lowest possible bits per byte": found.get("eval_floor"),
            "per cent above it": found.get("eval_above_floor"),
        }
        known = {name: value for name, value in facts.items() if value is not None}
        return {"command": "minillm pretrain", **self.about, **known}


class Report:
    """Moves the bar, and writes every row after the other callbacks added to it."""

    def __init__(self, log: RunLog, bar: tqdm):
        self.log, self.bar = log, bar

    def on_step_end(self, trainer: Trainer) -> None:
        self.bar.update()

    def on_log(self, trainer: Trainer, row: dict) -> None:
        speed = f"{row['tokens_per_second']:,.0f}"
        self.bar.set_postfix({"loss": f"{row['loss']:.3f}", "tokens/s": speed})
        self.log.write(row)

    def on_evaluate(self, trainer: Trainer, row: dict) -> None:
        self.log.write(row)


def check_fit(model: nn.Module, tokenizer, config: TrainingConfig) -> None:
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


def describe_amount(tokens: int, config: TrainingConfig) -> str:
    """A warning if all the data is shorter than one row; "" for all others."""
    if tokens >= (context := config.context_length):
        return ""
    return f"all the data is {tokens} tokens, less than one row of {context=}"


def describe_command(config: RunConfig, command: str) -> str:
    """The command line that repeats a run's settings."""
    values = asdict(config)
    changed = [
        f"--{field.name} {values[field.name]}"
        for field in fields(config)
        if field.name not in ("output_dir", "device")
        and values[field.name] != field.default
    ]
    return " ".join([command, *changed])
