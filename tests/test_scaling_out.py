"""Several processes: what they compute together is what one computes alone."""

import sys
from pathlib import Path

import pytest
import torch

from minillm.scaling_out import (
    Processes,
    bytes_per_process,
    torchrun,
    training_days,
)
from minillm.transformer import ModelConfig, Transformer, count_flops

SCRIPT = """
import sys, torch, torch.distributed as dist
from minillm.scaling_out import average_gradients
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
layer = torch.nn.Linear(3, 2)
frozen = torch.nn.Linear(1, 1)  # has no gradient, and is left alone
layer.weight.grad = torch.full((2, 3), float(rank))
layer.bias.grad = torch.tensor([rank, 10.0 * rank])
average_gradients(torch.nn.Sequential(layer, frozen), size)
open(f"{sys.argv[1]}/{rank}", "w").write(
    f"{layer.weight.grad.unique().tolist()} {layer.bias.grad.tolist()}"
)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_average_gradients_gives_every_process_the_mean(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = torchrun(2, tmp_path / "script.py", tmp_path)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    found = {(tmp_path / str(rank)).read_text() for rank in range(2)}
    assert found == {"[0.5] [0.5, 5.0]"}


@pytest.mark.slow
def test_torchrun_runs_programs_and_reports_failure():
    launcher = torchrun(2, "--no-python", sys.executable, "-c", "raise SystemExit(3)")
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and "exitcode" in output


def test_days_are_three_forward_passes():
    config = ModelConfig.from_preset("tiny")
    flops = count_flops(config, config.max_position_embeddings)
    assert training_days(config, 1000, 1.0) == pytest.approx(3000 * flops / 86400)


@pytest.mark.parametrize("processes", [1, 2, 8])
def test_bytes_per_process(processes: int):
    config = ModelConfig.from_preset("tiny")
    weights = 4 * sum(p.numel() for p in meta(config).parameters())
    whole, cut = (bytes_per_process(config, processes, s) for s in (False, True))
    assert whole["memory"] == 4 * weights
    assert cut["memory"] == pytest.approx(whole["memory"] / processes)
    assert whole["sent"] == pytest.approx(2 * weights * (1 - 1 / processes))
    assert cut["sent"] == pytest.approx(1.5 * whole["sent"])


def meta(config: ModelConfig) -> torch.nn.Module:
    with torch.device("meta"):
        return Transformer(config)


def test_one_process_is_left_as_it_is(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    processes, model = Processes("cpu"), torch.nn.Linear(2, 2)
    assert (processes.rank, processes.world_size) == (0, 1)
    assert processes.sum(3, 0.5) == [3, 0.5]
    assert processes.wrap(model) is model
    with processes.no_sync(model):
        model(torch.ones(2)).sum().backward()
    assert model.weight.grad is not None


PARTS = """
import sys, torch
from minillm.scaling_out import Processes
processes = Processes("cpu")
rank, model = processes.rank, torch.nn.Linear(1, 1, bias=False)
wrapped, found = processes.wrap(model), list(processes.sum(rank, 10))
with processes.no_sync(wrapped):
    wrapped(torch.tensor([rank + 1.0])).sum().backward()
found.append(model.weight.grad.item())  # own: 1 or 2
wrapped(torch.tensor([10.0])).sum().backward()
found.append(model.weight.grad.item())  # the mean of 11 and 12
open(f"{sys.argv[1]}/{rank}", "w").write(str(found))
"""


@pytest.mark.slow
def test_processes_sum_wait_and_average(tmp_path: Path):
    (tmp_path / "script.py").write_text(PARTS)
    launcher = torchrun(2, tmp_path / "script.py", tmp_path)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    found = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert found == [f"[1.0, 20.0, {own}, 11.5]" for own in ("1.0", "2.0")]
