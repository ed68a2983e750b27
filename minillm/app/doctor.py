"""`minillm doctor`: what this machine has, whether it computes right, and how fast."""

import os
import platform
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec

from minillm.app.console import say
from minillm.support.files import write_atomic

PACKAGES = (
    "torch numpy regex safetensors jinja2 datasets tqdm tensorboard jsonargparse"
).split()
Finding = tuple[bool, str, str]  # is it well, what was found, how to fix it


def check_python() -> Iterable[Finding]:
    """Python's version and those of the packages that minillm needs."""
    number, fix = platform.python_version(), "install Python 3.11 or newer"
    yield sys.version_info >= (3, 11), f"Python {number}", fix
    found = [name for name in PACKAGES if find_spec(name)]
    yield True, ", ".join(f"{name} {version(name)}" for name in found), ""
    if missing := " ".join(name for name in PACKAGES if name not in found):
        yield False, f"missing: {missing}", "`pip install -e .` or `make setup`"


def check_room() -> Iterable[Finding]:
    """Cores, memory, free disk, and whether this folder can be written to."""
    from minillm.support.devices import total_memory

    yield True, f"{os.cpu_count()} cores, {platform.machine()}", ""
    if memory := total_memory():
        fix = "close other programs, or lower per_device_train_batch_size"
        yield memory > 3e9, f"{memory / 1e9:.0f} GB of memory", fix
    free = shutil.disk_usage(".").free
    yield free > 2e9, f"{free / 1e9:.0f} GB of disk free here", "free 2 GB or more"
    try:
        with write_atomic(".minillm-doctor") as temporary:
            temporary.write_text("")
        os.remove(".minillm-doctor")
        yield True, "this folder can be written to", ""
    except OSError as error:
        fix = "work in a folder of your own"
        yield False, f"this folder cannot be written to: {error.strerror}", fix


def check_devices(tolerance: float = 1e-3) -> Iterable[Finding]:
    """Each device in float32 against the CPU in float64, by relative difference."""
    import torch

    from minillm.support.devices import devices

    right = small_computation("cpu", torch.float64)
    for device in devices():
        here = small_computation(device, torch.float32)
        for name, value in here.items():
            off = ((value - right[name]).norm() / right[name].norm()).item()
            what = f"{device}: {name} differs from float64 by {off:.0e}"
            fix = f"use --device cpu, and update the driver or torch for {device}"
            yield off < tolerance, what, fix


def small_computation(device: str, dtype) -> dict:
    """A product, an attention, two training steps: results as float64 on the CPU."""
    import torch

    from minillm.attention import attend
    from minillm.optimization import AdamW, cross_entropy
    from minillm.transformer import ModelConfig, Transformer

    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=draw).to(device, dtype)
    heads = torch.randn(3, 2, 4, 32, 16, generator=draw).to(device, dtype)
    ids = torch.randint(64, (2, 17), generator=draw).to(device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(ModelConfig(64, 32, 64, 2, 4)).to(device, dtype)
    optimizer, losses = AdamW(model.parameters(), lr=0.01), []
    for _ in range(2):
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    steps = torch.stack(losses)
    results = {"product": a @ b, "attention": attend(*heads), "step": steps}
    return {name: value.double().cpu() for name, value in results.items()}


def check_speed() -> Iterable[Finding]:
    """What this machine trains in five minutes and in a night, from about 2 seconds."""
    from minillm.app.training import RunConfig
    from minillm.optimization import precision_speeds
    from minillm.support.devices import devices
    from minillm.transformer import ModelConfig, Transformer, count_flops

    device, shape = devices()[-1], ModelConfig.from_preset("tiny")
    speeds = precision_speeds(Transformer(shape).to(device), rounds=2)
    rates = ", ".join(f"{name} {rate / 1e3:.0f}k" for name, rate in speeds.items())
    yield True, f"{device} trains the default model, tokens a second: {rates}", ""
    rate, run = max(speeds.values()), RunConfig()
    tokens = run.max_steps * run.per_device_train_batch_size * run.context_length
    minutes = tokens * run.gradient_accumulation_steps / rate / 60
    fix = "lower --max_steps, or use a machine with a GPU (Colab)"
    yield minutes < 30, f"`minillm pretrain` takes about {minutes:.0f} minutes", fix
    each = 3 * count_flops(shape, 256)  # FLOPs a token: backward costs twice forward
    size = (each * rate * 8 * 3600 / (6 * 20)) ** 0.5  # 20 tokens for each parameter
    night = f"{size / 1e6:.0f}M parameters on {20 * size / 1e6:.0f}M tokens"
    yield True, f"five minutes: {rate * 3e-4:.1f}M tokens; a night: {night}", ""


def doctor() -> int:
    """Check this machine: versions, room, right results, what it can train."""
    bad = 0
    for check in (check_python, check_room, check_devices, check_speed):
        for well, what, fix in check():
            say(f"{'ok ' if well else 'FIX'}  {what}" + ("" if well else f": {fix}"))
            bad += not well
    say("all is well" if not bad else f"{bad} to fix")
    return min(bad, 1)
