"""What this machine has: devices, memory, and the speed of one large product."""

import ctypes
import functools
import math
import os
import sys
import time
from pathlib import Path

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # float32 for all others


def devices() -> list[str]:
    """What torch can compute on here, the fastest last."""
    gpus = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available()}
    return ["cpu", *(name for name, found in gpus.items() if found)]


def pick_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """`auto` is CUDA where there is a GPU, else Apple's MPS, else the CPU.

    ValueError if this machine has no such device.
    """
    known = ["auto", *devices()]
    if name.split(":")[0] not in known:
        text = f"device={name!r} is not on this machine; choose one of: "
        raise ValueError(text + ", ".join(known))
    device = torch.device(devices()[-1] if name == "auto" else name)
    if device == torch.device("cuda"):
        return torch.device("cuda", local_rank)
    return device


def total_memory() -> int | None:
    """Bytes of memory in this machine; None where the system doesn't say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None


def memory_there(device: str | torch.device = "cpu") -> int | None:
    """Bytes that a run can still take on this device; None where nothing says so."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        return torch.mps.recommended_max_memory() - used
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():  # Linux
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return total_memory()


def peak_memory(device: str | torch.device = "cpu") -> int:
    """The most bytes this process has used: on the GPU if it has one, else in RAM."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch ran out of memory; only CUDA has an error of its own."""
    signs = ("out of memory", "allocate memory", "not enough memory")
    return any(sign in str(error) for sign in signs)


def keep_freed_memory() -> bool:
    """Let the C library keep freed blocks for the next step; False if it can't.

    Changes no result, only the time: glibc's mallopt(3), M_MMAP_THRESHOLD (-3) and
    M_TRIM_THRESHOLD (-1). Other systems and libraries are left as they are.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt"):
        return False
    large = library.mallopt(-3, 1 << 30) or library.mallopt(-3, 1 << 25)  # old: 32 MB
    return bool(large and library.mallopt(-1, (1 << 31) - 1))


@functools.cache
def product_speed(device: str | torch.device = "cpu", precision: str = "float32"):
    """FLOP/s of one large matrix product here: the ceiling for any model."""
    device, before = torch.device(device), torch.get_float32_matmul_precision()
    size, best = (8192 if device.type == "cuda" else 1024), math.inf
    dtype = DTYPES.get(precision, torch.float32)
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
    end = time.perf_counter() + 0.5
    while (start := time.perf_counter()) < end:
        (a @ b)[0, 0].item()  # to read a number is to wait for it
        best = min(best, time.perf_counter() - start)
    torch.set_float32_matmul_precision(before)
    return 2 * size**3 / best


def gpu_columns(device: torch.device, precision: str, speed: float) -> dict[str, float]:
    """A GPU's further columns: mfu and, if known, gpu_use; {} without a GPU."""
    if device.type != "cuda":
        return {}
    row = {"mfu": speed / product_speed(device, precision)}
    try:
        row["gpu_use"] = torch.cuda.utilization(device)
    except (ImportError, RuntimeError):  # no nvidia-ml-py, or a driver that won't say
        pass
    return row
