"""What the machine has: memory in bytes, a speed, and a GPU's further columns."""

import torch

from minillm.support import devices


def test_memory_is_bytes():
    assert 2**25 < devices.peak_memory() < 2**42


def test_a_gpus_row_says_its_share_of_the_ceiling(monkeypatch):
    assert devices.gpu_columns(torch.device("cpu"), "bf16", 1e9) == {}
    monkeypatch.setattr(devices, "product_speed", lambda device, precision: 4e9)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 93)
    row = devices.gpu_columns(torch.device("cuda", 0), "bf16", 1e9)
    assert row == {"mfu": 0.25, "gpu_use": 93}

    def absent(device):
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", absent)
    assert devices.gpu_columns(torch.device("cuda", 0), "bf16", 1e9) == {"mfu": 0.25}


def test_the_ceiling_is_a_speed():
    assert 1e8 < devices.product_speed("cpu", "float32") < 1e15


def test_the_memory_of_the_machine_is_known_or_not():
    there, total = devices.memory_there("cpu"), devices.total_memory()
    assert there is None or 2**26 < there < 2**50
    assert there is None or total is None or there <= total


def test_auto_is_the_last_device(monkeypatch):
    assert devices.devices()[0] == "cpu"
    assert devices.pick_device("auto").type == devices.devices()[-1]
    monkeypatch.setattr(devices, "devices", lambda: ["cpu", "cuda"])
    assert devices.pick_device("auto", local_rank=3) == torch.device("cuda", 3)
    assert devices.pick_device("cuda:1", local_rank=3) == torch.device("cuda", 1)
    assert devices.pick_device("cpu") == torch.device("cpu")
