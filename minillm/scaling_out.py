"""Several processes train one model: they share the rows and add up gradients."""

# Generated from notebooks/12_scaling_out.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = ["training_days", "average_gradients", "torchrun", "bytes_per_process"]

# %%
import os
import subprocess
import sys

import torch
import torch.distributed as dist
from torch import nn

from minillm.transformer import ModelConfig, count_flops, count_parameters


# %%
def training_days(config: ModelConfig, tokens: float, flops_per_second: float) -> float:
    """Days to train on `tokens`: 3 forward passes each (Kaplan et al. 2020, 2.1).

    flops_per_second is what is achieved over all devices, not what a data sheet says.
    """
    flops = 3 * count_flops(config, config.max_position_embeddings) * tokens
    return flops / flops_per_second / 86400


# %%
def average_gradients(model: nn.Module, world_size: int) -> None:
    """Replace every gradient by its mean over all processes, in one all-reduce.

    All gradients travel as one flat tensor, since many small messages are slow. What
    `DistributedDataParallel` does too, while the backward pass is still going on.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size
    start = 0
    for gradient in gradients:
        end = start + gradient.numel()
        gradient.copy_(flat[start:end].view_as(gradient))
        start = end


# %%
def torchrun(processes: int, *command: object) -> subprocess.Popen:
    """Start `command` that many times on this machine, as one group.

    A Python script, or with `--no-python` in front any program. Returns the running
    launcher; its exit code is 0 only if all of the processes ended well.
    """
    launcher = [
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]
    threads = max(1, (os.cpu_count() or 1) // processes)
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# %%
def bytes_per_process(
    config: ModelConfig, processes: int, sharded: bool = False
) -> dict[str, float]:
    """Memory of weights, gradients and AdamW's moments, and traffic of one step.

    In float32, activations not counted. DDP all-reduces the gradients; FSDP gathers the
    weights twice and scatters the gradients (Rajbhandari et al. 2020, section 7).
    """
    size = 4.0 * sum(count_parameters(config).values())
    share = (processes - 1) / processes
    return {
        "memory": 4 * size / (processes if sharded else 1),
        "sent": (3 if sharded else 2) * share * size,
    }
