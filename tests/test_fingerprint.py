"""Only what could have changed an output is executed again."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import fingerprint  # noqa: E402

ONE = '''"""A module."""
import math
from dataclasses import dataclass

from minillm.two import helper

LIMIT = 3


def area(r):
    """Of a circle."""
    return math.pi * r**2  # no need for more


def other(x):
    return helper(x) + LIMIT


@dataclass
class Settings:
    """A size."""


class Kept:
    """A class."""

    def call(self):
        return area(1)
'''
TWO = """
def helper(x):
    return deep(x)


def deep(x):
    return x
"""
AREA = "from minillm.one import area\narea(1)"
CELL = "from minillm.one import {}\n{}(1)"


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of two modules; `edit` changes one and gives a notebook's hash anew."""
    package = tmp_path / "minillm"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(ONE)
    (package / "two.py").write_text(TWO)
    monkeypatch.setattr(fingerprint, "PACKAGES", {"minillm": package})

    def edit(name="one", old="", new="", cell=AREA):
        path = package / f"{name}.py"
        assert old in path.read_text()
        path.write_text(
            path.read_text().replace(old, new, 1) if old else path.read_text()
        )
        for cached in ("path_of", "definitions", "imports_of"):
            getattr(fingerprint, cached).cache_clear()
        return fingerprint.fingerprint([cell], tmp_path)

    yield edit
    for cached in ("path_of", "definitions", "imports_of"):
        getattr(fingerprint, cached).cache_clear()


@pytest.mark.parametrize(
    "old, new",
    [
        ("Of a circle.", "The area of a circle."),
        ("# no need for more", "# that is all"),
        ('"""A module."""', '"""Another."""'),
        ("LIMIT = 3", "LIMIT = 4"),  # another name
        ("return area(1)", "return area(2)"),
        ("math.pi * r**2", "math.pi * (r**2)"),
    ],
)
def test_prose_and_what_is_not_used_execute_nothing(course, old, new):
    assert course() == course(old=old, new=new)


@pytest.mark.parametrize(
    "cell, name, old, new",
    [
        (CELL.format("area", "area"), "one", "r**2", "r**3"),
        (CELL.format("other", "other"), "one", "LIMIT = 3", "LIMIT = 4"),
        (CELL.format("other", "other"), "two", "return x", "return -x"),
        (CELL.format("Kept", "Kept"), "one", "r**2", "r**3"),
        ("import minillm.one as m\nm.other(1)", "one", "r**2", "r**3"),
        ('run("minillm.one:area")', "one", "r**2", "r**3"),
        ("from minillm import one\none.area(1)", "one", "r**2", "r**3"),
        (CELL.format("Settings", "help"), "one", "A size.", "Size."),  # is shown
    ],
)
def test_what_is_reached_executes(course, cell, name, old, new):
    assert course(cell=cell) != course(name, old, new, cell)


def test_a_comment_in_a_cell_is_prose_and_a_number_is_not(course):
    assert course(cell="x = 1  # one") == course(cell="x = 1") != course(cell="x = 2")


def test_a_checkpoint_counts_byte_by_byte(course, tmp_path):
    cell = 'open("checkpoints/small/config.json")'
    folder = tmp_path / "checkpoints/small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    before = course(cell=cell)
    (folder / "config.json").write_text("{ }")
    assert course(cell=cell) != before


def test_it_reaches_what_the_command_line_imports_late():
    code = 'from minillm.app.main import main\nmain(["pretrain"])'
    names = fingerprint.reached(code)
    assert ("minillm.attention", "Attention") in names
    assert ("minillm.pretraining", "Trainer") in names
