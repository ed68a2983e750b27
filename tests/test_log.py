"""The log keeps the whole rows of steps that count, and passes them on."""

import json
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from minillm.app.training import RunConfig
from minillm.support.log import RunLog, log_settings, open_wandb


def rows_of(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_after_the_step_and_a_broken_line_are_forgotten(tmp_path):
    log = RunLog(tmp_path)
    for step in range(5):
        log.write({"step": step, "loss": 1 / (step + 1), "sample": "“a”"})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    log = RunLog(tmp_path, step=2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert rows_of(tmp_path) == log.rows
    assert [row["step"] for row in log.rows] == [0, 1, 2, 3]
    assert log.rows[1]["loss"] == 0.5 and log.rows[1]["sample"] == "“a”"


def test_tensorboard_shows_the_rows(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    log.write({"step": 7, "loss": 0.25, "sample": "Tom had a kite.", "none": None})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("loss")
    assert (event.step, event.value) == (7, 0.25)
    assert events.Tags()["tensors"] == ["sample/text_summary"]


def test_settings_are_beside_the_rows_and_can_be_read_back(tmp_path):
    log, config = RunLog(tmp_path), RunConfig(max_steps=7)
    log_settings(log, asdict(config))
    log.close()
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert RunConfig(**kept) == config


def test_wandb_gets_the_same_rows_and_resumes_its_run(tmp_path, monkeypatch):
    logged, opened = [], []

    class Pretended:
        def log(self, row, step):
            logged.append((step, row))

    def init(**options):
        opened.append(options)
        return Pretended()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    folder = tmp_path / "pretrain"
    folder.mkdir()
    log = RunLog(folder, also=[open_wandb(folder, {"seed": 3})])
    log.write({"step": 10, "loss": 2.5})
    log.close()
    assert logged == [(10, {"step": 10, "loss": 2.5})]
    assert opened[0]["config"] == {"seed": 3} and opened[0]["resume"] == "allow"


def test_wandb_that_is_missing_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        open_wandb(tmp_path, {})
