"""The first hour on other machines: Colab, set-up, the device check's neighbours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import build  # noqa: E402
import check  # noqa: E402
import course  # noqa: E402

OURS = ("minillm", "__editable__", "_minillm", "littleworld")


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A machine like Colab's: PyTorch is there, the course is not; and its address.

    Its packages are links to those of this environment, without the course. pip is the
    real one; it has no index and builds with what is there, so it can fetch nothing.
    """
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")],
        check=True,
    )
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(torch.__file__).parent.parent.iterdir():
        if not entry.name.startswith(OURS):
            (packages / entry.name).symlink_to(entry)
    (packages / "google").mkdir(exist_ok=True)
    (packages / "google/colab.py").write_text("")
    (site,) = folder.glob("venv/lib/python*/site-packages")
    (site / "packages.pth").write_text(str(packages))
    (site / "sitecustomize.py").write_text("import google.colab")
    course = str(folder / "course.git")
    clone = ["git", "clone", "--quiet", "--bare", str(ROOT), course]
    subprocess.run(clone, check=True)
    return folder, course


def first_cell(stem: str) -> str:
    cells = build.read(stem)["cells"]
    return next("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def in_colab(
    colab, place: Path, code: str, typed: str = "", **environment: str
) -> dict | list:
    """Run code there, in `place`, as a notebook's cells; what it printed as JSON."""
    folder, _ = colab
    kept = {k: v for k, v in os.environ.items() if k in ("HOME", "PATH", "LANG")}
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_CONFIG_FILE": "",
    }
    done = subprocess.run(
        [str(folder / "venv/bin/python"), "-c", code], cwd=place, input=typed,
        env=kept | offline | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout[re.search(r"[\[{]", done.stdout).start() :])


def what_is_installed(packages: Path) -> dict[str, int]:
    """Every package, and when its list of files was written."""
    records = {p.name: p / "RECORD" for p in packages.iterdir()}
    return {n: r.stat().st_mtime_ns if r.exists() else 0 for n, r in records.items()}


WHAT_IS_THERE = """
import json, os, torch, minillm.tokenizer, littleworld
from littleworld import World
assert World("nano").sample(0).text
found = dict(torch=[torch.__version__, torch.__file__], cwd=os.getcwd())
found |= dict(minillm=minillm.tokenizer.__file__, world=littleworld.__file__)
print(json.dumps(found))
"""


WHERE = "import json, minillm; print(json.dumps([os.getcwd(), minillm.__file__]))"


def test_there_is_one_set_up_cell():
    assert len({first_cell(stem) for stem in build.stems()}) == 1


@pytest.mark.slow
def test_colab_fetches_the_course_and_leaves_torch_alone(colab, tmp_path):
    """First in a new machine, then after its kernel was restarted, which is quick."""
    code = first_cell("03_attention") + WHAT_IS_THERE
    before = what_is_installed(colab[0] / "packages")
    found = in_colab(colab, tmp_path, code, MINILLM_REPOSITORY=colab[1])
    clone = tmp_path / "minillm-course"
    assert Path(found["cwd"]) == clone
    assert Path(found["minillm"]) == clone / "minillm/tokenizer.py"
    assert Path(found["world"]) == clone / "data/littleworld/__init__.py"
    assert found["torch"][0] == torch.__version__
    assert Path(found["torch"][1]).parent == colab[0] / "packages/torch"
    # pip put nothing new among the packages, replaced none and removed none
    assert what_is_installed(colab[0] / "packages") == before
    (site,) = colab[0].glob("venv/lib/python*/site-packages")
    assert [path.name for path in site.glob("minillm-*.dist-info")]
    code = first_cell("03_attention") + "\n" + WHERE
    again = in_colab(colab, tmp_path, code)  # no address: nothing is fetched again
    assert again[0] == found["cwd"]


def test_colab_asks_for_the_address(colab, tmp_path):
    """In a fresh machine with no address given, one is typed."""
    stub = "import subprocess as s, sys\nreal = s.run\n"
    stub += "s.run = lambda c, **k: real(c, **k) if c[0] == 'git' else None\n"
    code = stub + first_cell("03_attention") + "\n" + WHERE
    found = in_colab(colab, tmp_path, code, typed=colab[1] + "\n")
    assert Path(found[0]) == tmp_path / "minillm-course"
    assert Path(found[1]).parent.parent == tmp_path / "minillm-course"


def plan(quick: bool) -> dict[str, list[str]]:
    return {name: command for name, (command, _) in check.commands(quick).items()}


def test_everything_is_checked_once():
    words = [word for command in plan(quick=False).values() for word in command]
    found = sorted(word for word in words if word.endswith(".ipynb"))
    assert found == sorted(f"notebooks/{stem}.ipynb" for stem in build.stems())
    assert words.count("tests") == 1 and "tools/book.py" in words
    assert plan(quick=False)["tests and notebooks"].count("-m") == 1  # python -m pytest


def test_quick_leaves_out_only_what_trains_and_what_is_slow():
    quick, everything = plan(quick=True), plan(quick=False)
    trains = {c.stem for c in course.chapters() if c.trains != "no"}
    words = [word for command in quick.values() for word in command]
    left_out = {word for c in everything.values() for word in c} - set(words)
    left_out = {word for word in left_out if word.endswith(".ipynb")}
    assert left_out == {f"notebooks/{stem}.ipynb" for stem in trains}
    assert words[words.index("tests") :][:3] == ["tests", "-m", "not slow"]
    assert quick.keys() == everything.keys() - {
        c.stem for c in course.chapters() if c.trains == "long"
    }


def test_a_check_that_fails_is_counted(capfd):
    assert not check.run("bad", [sys.executable, "-c", "print('why'); exit(3)"], 1)
    assert check.run("good", [sys.executable, "-c", "print('1 passed')"], 2)
    said = capfd.readouterr().out
    assert "why" in said and "bad: FAILED" in said and "good: passed" in said
