"""The log keeps whole rows of steps that count, and the card names no machine."""

import json
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch

from minillm import run_log
from minillm.optimization import cross_entropy
from minillm.pretraining import TrainingConfig
from minillm.run_log import RunLog, peak_memory, write_model_card
from minillm.transformer import ModelConfig, Transformer


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


def test_the_card_gives_the_facts_and_no_date_or_path(tmp_path):
    facts = {"seed": 0, "tokens seen": 1234567, "bits per byte": 0.123456}
    text = write_model_card(tmp_path, facts, title="T", command="minillm pretrain")
    assert text == (tmp_path / "README.md").read_text()
    assert "| tokens seen | 1,234,567 |" in text
    assert "| bits per byte | 0.1235 |" in text
    assert torch.__version__.split("+")[0] in text and "minillm pretrain" in text
    assert str(tmp_path) not in text and "+cpu" not in text
    assert write_model_card(tmp_path, {"data": "a|b"}).count("a\\|b") == 1


def test_memory_is_bytes():
    assert 2**25 < peak_memory() < 2**42


def test_settings_stand_beside_the_rows_and_can_be_read_back(tmp_path):
    log, config = RunLog(tmp_path), TrainingConfig(max_steps=7)
    run_log.log_settings(log, asdict(config))
    log.close()
    kept = json.loads((tmp_path / "settings.json").read_text())
    assert TrainingConfig(**kept) == config


def test_wandb_gets_the_same_rows_and_goes_on_with_its_run(tmp_path, monkeypatch):
    told, opened = [], []

    class Pretended:
        def log(self, row, step):
            told.append((step, row))

    def init(**options):
        opened.append(options)
        return Pretended()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    folder = tmp_path / "pretrain"
    folder.mkdir()
    log = RunLog(folder, also=[run_log.open_wandb(folder, {"seed": 3})])
    log.write({"step": 10, "loss": 2.5})
    log.close()
    assert told == [(10, {"step": 10, "loss": 2.5})]
    assert opened[0]["config"] == {"seed": 3} and opened[0]["resume"] == "allow"


def test_wandb_that_is_not_there_is_asked_for_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        run_log.open_wandb(tmp_path, {})


def test_the_budget_is_what_a_step_holds():
    config = TrainingConfig(per_device_train_batch_size=4, context_length=64)
    model = Transformer(ModelConfig(280, 32, 64, 2, 2))
    needs = run_log.memory_needed(model.config, config)
    assert needs["weights"] == needs["gradients"] == 4 * model.num_parameters()
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(280, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        cross_entropy(model(ids), ids)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    size = sum(s.nbytes() for place, s in kept.items() if place not in own)
    assert size == pytest.approx(needs["activations"], rel=0.1)


def test_memory_that_is_there_is_known_or_not():
    there = run_log.memory_there("cpu")
    assert there is None or 2**26 < there < 2**50
    assert run_log.check_memory({"weights": 10**18}, None, TrainingConfig()) == ""


def test_one_row_can_not_be_halved():
    one = TrainingConfig(per_device_train_batch_size=1)
    assert "context_length below 160" in run_log.describe_memory(one)


def test_a_gpus_row_says_its_share_of_the_ceiling(monkeypatch):
    assert run_log.gpu_columns(torch.device("cpu"), "bf16", 1e9) == {}
    monkeypatch.setattr(run_log, "product_speed", lambda device, precision: 4e9)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 93)
    row = run_log.gpu_columns(torch.device("cuda", 0), "bf16", 1e9)
    assert row == {"mfu": 0.25, "gpu_use": 93}

    def absent(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", absent)
    assert run_log.gpu_columns(torch.device("cuda", 0), "bf16", 1e9) == {"mfu": 0.25}


def test_the_ceiling_is_a_speed():
    assert 1e8 < run_log.product_speed("cpu", "float32") < 1e15
