"""What a training run writes down about itself: numbers and a card."""

# Generated from notebooks/appendix_run_log.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "CARD",
    "RunLog",
    "as_line",
    "whole_rows",
    "peak_memory",
    "versions",
    "write_model_card",
    "as_cell",
]

# %%
import json
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy
import torch

from minillm.data import write_atomic


# %%
class RunLog:
    """A run's measurements: one JSON object a line in metrics.jsonl, and TensorBoard.

    Opened at `step`, it forgets rows of later steps, and a last line that was cut off:
    what a killed run wrote after its last checkpoint is measured again on resuming.
    `rows` holds all rows that stand in the file.
    """

    def __init__(self, folder: str | Path, step: int = 0):
        from torch.utils.tensorboard import SummaryWriter

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
        for name, value in row.items():
            if isinstance(value, str):
                self.board.add_text(name, value, row["step"])
            elif isinstance(value, int | float) and name != "step":
                self.board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self.file.close()
        self.board.close()


def as_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def whole_rows(path: Path) -> Iterable[dict]:
    """Rows of a metrics.jsonl up to the first line that is not whole."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return


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
def versions() -> dict[str, str]:
    """The versions that decide whether a run can be repeated to the last bit."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
    }
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
