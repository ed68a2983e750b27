"""Several processes: what they compute together is what one computes alone."""

import sys
from pathlib import Path

import pytest
import torch

from minillm.scaling_out import bytes_per_process, torchrun, training_days
from minillm.transformer import ModelConfig, count_flops

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
    from minillm.transformer import Transformer

    with torch.device("meta"):
        return Transformer(config)
