"""book/course.toml is the one list of chapters: renumbering one is a line in it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import course  # noqa: E402

KEPT = ("notebooks/*.ipynb", "notebooks/text/*.md", "book/*.*", "*.md", "data/*.md")


def tree(root: Path) -> dict[str, str]:
    files = {p for pattern in KEPT for p in root.glob(pattern) if p.is_file()}
    files |= set(root.glob("book/figures/course_map*.svg"))
    return {str(p.relative_to(root)): p.read_text("utf-8") for p in sorted(files)}


@pytest.fixture
def copy(tmp_path):
    """What lists or links chapters, and the code that mentions them."""
    for name in tree(ROOT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("minillm", "tools", "tests"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pyc*")
        )
    return tmp_path


def test_everything_that_lists_chapters_is_as_the_list_says(copy):
    before = tree(copy)
    course.sync(copy)
    after = tree(copy)
    assert before.keys() == after.keys()
    changed = [name for name in before if before[name] != after[name]]
    assert not changed, f"run `python tools/course.py`: {changed}"


def test_renumbering_a_chapter_is_one_line(copy):
    """12 relay and 13 scaling_out change places: files, links, contents, mentions."""
    listed = copy / "book/course.toml"
    text = listed.read_text("utf-8")
    for name, old, new in (("relay", "12", "13"), ("scaling_out", "13", "12")):
        text = text.replace(
            f'number = "{old}"\nname = "{name}"', f'number = "{new}"\nname = "{name}"'
        )
    listed.write_text(text, "utf-8")
    before = tree(copy)
    course.sync(copy)
    after = tree(copy)
    assert "notebooks/13_relay.ipynb" in after and "12_relay" not in str(after.keys())
    for name, content in after.items():
        if name.endswith(".md") and name != "CHANGELOG.md":
            assert not re.search(r"12_relay|13_scaling_out", content), name
            for shown, stem in re.findall(r"\[(\d\d)\]\(\S*?(\d\d_\w+)\.", content):
                assert stem.startswith(shown), f"{name}: [{shown}] leads to {stem}"
    files = re.findall(r"notebooks/(\w+)", after["book/_toc.yml"])
    assert files.index("12_scaling_out") < files.index("13_relay")
    assert ">12</tspan> scaling out" in after["book/figures/course_map.svg"]
    moved = before["notebooks/text/12_relay.md"]
    assert after["notebooks/text/13_relay.md"] != moved  # its links to 13 say 12 now
    course.sync(copy)
    assert tree(copy) == after


def test_a_new_chapter_is_a_row(copy):
    row = (
        '\n[[chapters]]\nnumber = "14"\nname = "evaluation"\npart = "Better answers"\n'
    )
    row += 'builds = "numbers"\nchecks = "a peer"\nrun = "1 s"\ntrains = "no"\n'
    listed = copy / "book/course.toml"
    listed.write_text(listed.read_text("utf-8") + row, "utf-8")
    for folder, kind in (("notebooks", "ipynb"), ("notebooks/text", "md")):
        old = copy / folder / f"04_mlp.{kind}"
        shutil.copy(old, copy / folder / f"14_evaluation.{kind}")
    course.sync(copy)
    assert "| [14_evaluation](notebooks/14_evaluation.ipynb) | numbers" in (
        copy / "README.md"
    ).read_text("utf-8")
    contents = yaml.safe_load((copy / "book/_toc.yml").read_text("utf-8"))
    parts = {part["caption"]: part["chapters"] for part in contents["parts"]}
    assert parts["Better answers"] == [{"file": "notebooks/14_evaluation"}]
    twin = (copy / "notebooks/text/14_evaluation.md").read_text("utf-8")
    assert "this is 14 Evaluation](../book/figures/course_map.svg#evaluation)" in twin


@pytest.mark.parametrize("field", ["name", "number"])
def test_a_chapter_listed_twice_is_named(copy, field):
    listed = copy / "book/course.toml"
    text = listed.read_text("utf-8")
    twice = text[text.index('[[chapters]]\nnumber = "03"') :].partition("\n\n")[0]
    listed.write_text(f"{text}\n{twice}\n", "utf-8")
    with pytest.raises(ValueError, match="lists attention twice"):
        course.chapters(copy)


def test_mentions_move_with_the_numbers_and_others_stay():
    known = course.chapters(ROOT)
    text = "See chapter 12, chapters 11 and 12; 12 rows; page 13, [12](12_relay.ipynb)."
    swapped = course.relink(text, known, {"12": "13", "13": "12"})
    assert swapped == (
        "See chapter 13, chapters 11 and 13; 12 rows; page 13, [12](12_relay.ipynb)."
    )
    assert course.relink(text, known, {}) == text


def test_the_script_says_what_is_wrong(tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "book").mkdir()
    (tmp_path / "book/course.toml").write_text("chapters = []\npages = []\n")
    (tmp_path / "README.md").write_text("no table")
    (tmp_path / "book/figures").mkdir()
    done = subprocess.run(
        [sys.executable, "tools/course.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "README.md has no part between" in done.stderr
