"""What a run measured: one JSON object a line in metrics.jsonl, and TensorBoard."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from minillm.support.files import write_atomic, write_json


class RunLog:
    """A run's measurements: one JSON object a line in metrics.jsonl, and TensorBoard.

    Opened at `step`, it drops rows of later steps, and a last line that was cut off:
    what a killed run wrote after its last checkpoint is measured again on resuming.
    `rows`: all rows in the file. `also`: functions that get each row too, such as
    the one that `open_wandb` returns.
    """

    def __init__(self, folder: str | Path, step: int = 0, also: Iterable = ()):
        from torch.utils.tensorboard import SummaryWriter

        self.path, self.also = Path(folder) / "metrics.jsonl", list(also)
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
        for log in self.also:
            log(row)
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


def log_settings(log: RunLog, settings: dict) -> None:
    """Write settings.json beside the rows, and the same as a text to TensorBoard."""
    write_json(settings, log.path.with_name("settings.json"))
    log.board.add_text("settings", f"```\n{json.dumps(settings, indent=2)}\n```", 0)


def open_wandb(folder: Path, settings: dict) -> Callable[[dict], None]:
    """Open the run in Weights & Biases, or resume it; return a function that logs rows.

    ValueError if the package wandb is not installed.
    """
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
