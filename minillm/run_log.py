"""What a training run writes down about itself: numbers and a card."""

# Generated from notebooks/appendix_run_log.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "CARD",
    "RunLog",
    "as_line",
    "whole_rows",
    "log_settings",
    "open_wandb",
    "memory_needed",
    "memory_there",
    "describe_needs",
    "check_memory",
    "peak_memory",
    "product_speed",
    "gpu_columns",
    "versions",
    "write_model_card",
    "as_cell",
    "describe_amount",
    "open_log",
    "describe_failure",
    "describe_evaluation",
    "describe_memory",
    "is_out_of_memory",
    "describe_command",
    "card_facts",
    "write_final",
]

# %%
import functools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields
from pathlib import Path

import numpy
import torch

from minillm.data import write_atomic
from minillm.optimization import autocast
from minillm.relay import remove_leftovers
from minillm.transformer import estimate_memory


# %%
class RunLog:
    """A run's measurements: one JSON object a line in metrics.jsonl, and TensorBoard.

    Opened at `step`, it forgets rows of later steps, and a last line that was cut off:
    what a killed run wrote after its last checkpoint is measured again on resuming.
    `rows` holds all rows that stand in the file. `also`: functions that are given each
    row too, such as the one that `open_wandb` returns.
    """

    def __init__(self, folder: str | Path, step: int = 0, also: Iterable = ()):
        from torch.utils.tensorboard import SummaryWriter

        self.also = list(also)

        self.path = Path(folder) / "metrics.jsonl"
        self.rows = [row for row in whole_rows(self.path) if row["step"] <= step]
        with write_atomic(self.path) as temporary:
            temporary.write_text("".join(map(as_line, self.rows)), encoding="utf-8")
        self.file = self.path.open("a", encoding="utf-8")
        purge = step + 1 if step else None
        self.board = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=purge)

    def write(self, row: dict) -> None:
        self.rows.append(row)
        self.file.write(as_line(row))
        self.file.flush()
        for tell in self.also:
            tell(row)
        for name, value in row.items():
            if isinstance(value, str):
                self.board.add_text(name, value, row["step"])
            elif isinstance(value, int | float) and name != "step":
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.file.close()
        self.board.close()


def as_line(row: dict) -> str:
    """A row as one line of JSON."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def whole_rows(path: Path) -> Iterable[dict]:
    """Rows of a metrics.jsonl up to the first line that is not whole."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


# %%
def log_settings(log: RunLog, settings: dict) -> None:
    """Write settings.json beside the rows, and the same as a text to TensorBoard."""
    text = json.dumps(settings, indent=1)
    with write_atomic(log.path.with_name("settings.json")) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    log.board.add_text("settings", f"```\n{text}\n```", 0)


def open_wandb(folder: Path, settings: dict) -> Callable[[dict], None]:
    """Open the run in Weights & Biases, or go on with it; a function that logs rows."""
    try:
        import wandb
    except ImportError:
        reason = "report_to='wandb' needs the package wandb: pip install wandb"
        raise ValueError(reason) from None
    name = f"{folder.parent.name}-{folder.name}"
    run = wandb.init(
        project="minillm", id=name, resume="allow", dir=str(folder), config=settings
    )
    return lambda row: run.log(dict(row), step=row["step"])


# %%
def memory_needed(shape, config) -> dict[str, int]:
    """Bytes by purpose that a step of this training holds at most, in one pass."""
    tokens = config.per_device_train_batch_size * config.context_length
    return estimate_memory(shape, tokens)


def memory_there(device: str | torch.device = "cpu") -> int | None:
    """Bytes that a run could still take on this device; None where nobody tells."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        held = torch.mps.current_allocated_memory()
        return torch.mps.recommended_max_memory() - held
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):  # macOS: all of it
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


# %%
def describe_needs(needs: dict[str, int]) -> str:
    """A budget in words, for the console."""
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in needs.items())
    return f"memory: {sum(needs.values()) / 1e6:,.0f} MB ({parts})"


def check_memory(needs: dict[str, int], there: int | None, config) -> str:
    """ValueError if a run can't fit; a warning if it may not; "" if it does."""
    if there is None or sum(needs.values()) <= there:
        return ""
    fixed = sum(size for name, size in needs.items() if name != "activations")
    text = f"{describe_needs(needs)}, but only {there / 1e6:,.0f} MB are free. "
    if fixed > there:
        raise ValueError(text + "No batch is small enough: take a smaller preset")
    return f"warning: {text}{describe_memory(config)}"


# %%
def peak_memory(device: str | torch.device = "cpu") -> int:
    """The most bytes this process has held: on the GPU if it has one, else in RAM."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# %%
@functools.cache
def product_speed(device: str | torch.device = "cpu", precision: str = "float32"):
    """FLOP/s of one large matrix product here: the ceiling for any model."""
    device = torch.device(device)
    size, best = (8192 if device.type == "cuda" else 1024), math.inf
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    with autocast(device, "medium" if precision == "medium" else "float32"):
        for _ in range(10):
            start = time.perf_counter()
            (a @ b)[0, 0].item()  # to read a number is to wait for it
            best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def gpu_columns(device: torch.device, precision: str, speed: float) -> dict[str, float]:
    """What a GPU's row says besides: mfu and, if known, gpu_use; {} without a GPU."""
    if device.type != "cuda":
        return {}
    row = {"mfu": speed / product_speed(device, precision)}
    try:
        row["gpu_use"] = torch.cuda.utilization(device)
    except (ImportError, RuntimeError):  # no nvidia-ml-py, or a driver that won't tell
        pass
    return row


# %%
def versions() -> dict[str, str]:
    """The versions that decide whether a run can be repeated to the last bit."""
    release = torch.__version__.split("+")[0]  # without "+cpu", "+cu130"
    found = {"python": platform.python_version(), "torch": release}
    return found | {"numpy": numpy.__version__}


CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# {title}

{summary}

{table}

## Made by

    {command}

## Use

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("this/folder")
    tokenizer = AutoTokenizer.from_pretrained("this/folder")
"""


# %%
def write_model_card(
    folder: str | Path,
    facts: dict,
    title: str = "A language model trained with minillm",
    summary: str = "Trained from scratch, on the data and with the settings below.",
    command: str = "minillm pretrain",
) -> str:
    """Write README.md, the model card of a checkpoint folder; return its text.

    `facts`: what its reader needs to know (data, seed, tokens, loss, floor), a table
    row each, in order. Nothing in it depends on the machine's folders or clock.
    """
    rows = {**facts, **{f"version of {k}": v for k, v in versions().items()}}
    table = "\n".join(
        ["| | |", "|--|--|", *(f"| {k} | {as_cell(v)} |" for k, v in rows.items())]
    )
    text = CARD.format(title=title, summary=summary, table=table, command=command)
    with write_atomic(Path(folder) / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def as_cell(value: object) -> str:
    """A value as the card shows it: 1,234 or 0.1234, and no broken table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


# %%
def describe_amount(dataset, config) -> str:
    """A remark on data that do not fill one row; "" for all others."""
    tokens, context = int(sum(dataset.lengths)), config.context_length
    if tokens >= context:
        return ""
    return f"all the data is {tokens} tokens, less than one row of {context=}"


def open_log(run, step: int) -> RunLog:
    """Warn or refuse, tidy the run's folder, open its log behind this step."""
    config, folder, settings = run.config, run.folder, asdict(run.config)
    needs, there = (
        memory_needed(run.model.config, config),
        memory_there(run.team.device),
    )
    for said in (
        check_memory(needs, there, config),
        describe_amount(run.dataset, config),
    ):
        if said:
            print(said)
    remove_leftovers(folder)
    wandb = config.report_to == "wandb"
    log = RunLog(folder, step, [open_wandb(folder, settings)] if wandb else [])
    log_settings(log, settings)
    return log


# %%
def describe_failure(nats: torch.Tensor, norm: float, documents: list) -> str:
    """Which rows of a batch gave a loss that is no number, and what stood in them."""
    finite = torch.isfinite(nats).tolist()
    bad = [row for row, fine in enumerate(finite) if not fine]
    named = sorted({i for row in bad or range(len(finite)) for i in documents[row]})
    text = ", ".join(map(str, named[:20])) + (", ..." if len(named) > 20 else "")
    return (
        f"gradient norm {norm}, loss not a number in {len(bad)} of {len(finite)} rows; "
        f"documents {text}"
    )


def describe_evaluation(row: dict) -> str:
    """One line for the console: step, loss, bits per byte, and the floor if known."""
    text = f"step {row['step']}: validation loss {row['eval_loss']:.2f}, "
    text += f"{row['eval_bits_per_byte']:.3f} bits per byte"
    above = row["eval_above_floor"]
    return text if above is None else f"{text}, {above:.1f} % above the floor"


def describe_memory(config) -> str:
    """What to change, so that the same training needs half the memory."""
    rows = config.per_device_train_batch_size
    passes = config.gradient_accumulation_steps
    if rows == 1:
        length = f"a context_length below {config.context_length}"
        return f"With 1 row in a pass, what is left is {length}, or a smaller preset"
    return (
        f"The same training in smaller passes: per_device_train_batch_size={rows // 2},"
        f" gradient_accumulation_steps={passes * 2}"
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for want of memory; only CUDA has an error of its own."""
    signs = ("out of memory", "allocate memory", "not enough memory")
    return any(sign in str(error) for sign in signs)


# %%
def describe_command(config, command: str) -> str:
    """The command line that repeats a run's settings."""
    values = asdict(config)
    changed = [
        f"--{field.name} {values[field.name]}"
        for field in fields(config)
        if field.name not in ("output_dir", "device")
        and values[field.name] != field.default
    ]
    return " ".join([command, *changed])


def card_facts(run) -> dict:
    """What the model card says of a run: the data, the amounts, the results."""
    data, found = run.dataset, run.progress.evaluation
    size = f"{len(data)} documents, {int(sum(data.lengths))} tokens"
    facts = {
        "parameters": run.model.num_parameters(),
        "training data": f"{size}, hash {run.identity['corpus']}",
        "tokens seen": run.progress.tokens,
        "passes over the data": round(run.batches.epoch, 2),
        "steps": run.step,
        "seed": run.config.seed,
        "precision": run.progress.precision,
        "validation loss (nats per token)": found.get("eval_loss"),
        "bits per byte": found.get("eval_bits_per_byte"),
        "lowest possible bits per byte": found.get("eval_floor"),
        "per cent above it": found.get("eval_above_floor"),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return {"command": "minillm pretrain", **run.about, **known}


# %%
def write_final(run) -> None:
    """Write final/: the model and its tokenizer without the training state; a card."""
    if run.team.rank == 0:
        with write_atomic(run.folder / "final") as temporary:
            temporary.mkdir()
            run.model.save_pretrained(temporary)
            run.tokenizer.save_pretrained(temporary)
            facts = card_facts(run)
            command = describe_command(run.config, facts.pop("command"))
            write_model_card(temporary, facts, command=command)
