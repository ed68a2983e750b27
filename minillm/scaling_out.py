"""Several processes train one model: they share the rows and add up gradients."""

# Generated from notebooks/13_scaling_out.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "training_days", "average_gradients", "torchrun", "Processes", "bytes_per_process",
]  # fmt: skip

# %%
import atexit
import os
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minillm.support.devices import pick_device
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

    All gradients travel as one flat tensor, since many small messages are slow.
    `DistributedDataParallel` does the same while the backward pass is still running.
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
    launcher = ["torch.distributed.run", "--standalone"]
    launcher.append(f"--nproc_per_node={processes}")
    threads = max(1, (os.cpu_count() or 1) // processes)
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# %%
class Processes:
    """The processes that train together, as `torchrun` started them; or just one.

    A part of `Trainer`, with the methods of chapter 09's `SingleProcess`.
    """

    def __init__(self, device: str = "auto"):
        known = ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)
        self.rank, self.world_size, local = (int(os.environ.get(*x)) for x in known)
        self.device = pick_device(device, local)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world_size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            atexit.register(dist.destroy_process_group)

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

    def no_sync(self, model: nn.Module) -> AbstractContextManager:
        """A pass whose gradients are not sent yet."""
        return model.no_sync() if self.world_size > 1 else nullcontext()


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
