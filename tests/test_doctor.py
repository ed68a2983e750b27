"""The doctor finds what is wrong with a machine, and says how to fix it."""

import pytest

from minillm.app import doctor
from minillm.app.main import main


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch):
    monkeypatch.setattr(doctor, "check_speed", lambda: [(True, "measured", "")])


def test_nothing_to_fix_on_this_machine(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "ok   cpu: attention differs from float64 by" in out
    assert out.rstrip().endswith("all is well")


def test_a_wrong_device_is_named_with_a_fix(monkeypatch, capsys):
    honest = doctor.small_computation

    def broken(device, dtype):
        values = honest(device, dtype)
        if str(dtype) == "torch.float32":
            values["attention"] = values["attention"] * 1.01
        return values

    monkeypatch.setattr(doctor, "small_computation", broken)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FIX  cpu: attention differs from float64 by 1e-02: use --device cpu" in out
    assert "1 to fix" in out


def test_a_missing_package_is_named_with_a_fix(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ["torch", "no_such_package"])
    well, what, fix = list(doctor.check_python())[-1]
    assert not well and what == "missing: no_such_package" and "pip install" in fix
