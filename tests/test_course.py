"""Checks of the course itself: nothing generated is stale; one home per idea."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import jupytext
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import build  # noqa: E402

STEMS = build.stems()
CHAPTERS = [stem for stem in STEMS if build.module_of(stem)]
FIRST_CODE = "# Set-up, the same in every chapter"
LINES, EXPORTED_LINES, CONTAINER_LINES, CELLS_IN_A_ROW = 15, 32, 60, 4
FOLDED = {"hide-input", "hide-cell"}
# What may be longer than 32 lines: classes whose parts stand before them, and lists.
CONTAINERS = set(
    """
    Attention BaseTokenizer Batches Chat ChatTemplate ChatWidget ChatWindow Conversation
    GenerationConfig ModelConfig Progress RowStream Run RunLog SFTDataset Terminal
    Tokenizer Trainer TrainingConfig Transformer Validation WatchedRun
    """.split()
)


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def cells(stem, kind="code"):
    return [c for c in build.read(stem)["cells"] if c["cell_type"] == kind]


def source(cell) -> str:
    return "".join(cell["source"])


def tags(cell) -> set:
    return set(cell["metadata"].get("tags", []))


def tracked() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    return [Path(name) for name in names if Path(name).is_file()]


def test_there_is_a_notebook_for_every_twin_and_a_twin_for_every_notebook():
    assert STEMS == sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("stem", STEMS)
def test_twin_and_notebook_hold_the_same_cells(stem):
    def content(notebook):
        return [(c.cell_type, c.source, c.metadata.get("tags")) for c in notebook.cells]

    twin = jupytext.read(f"notebooks/text/{stem}.md")
    assert content(jupytext.read(f"notebooks/{stem}.ipynb")) == content(twin)


@pytest.mark.parametrize("stem", CHAPTERS)
def test_module_is_what_its_notebook_exports(stem):
    module = Path("minillm", f"{build.module_of(stem)}.py")
    assert module.read_text(encoding="utf-8") == build.exported(stem)


def test_every_module_has_one_notebook():
    owners = [build.module_of(stem) for stem in CHAPTERS]
    assert sorted(owners) == sorted(
        path.stem for path in Path("minillm").glob("*.py") if path.stem[0] != "_"
    )
    assert len(set(owners)) == len(owners)
    assert Path("minillm/__init__.py").read_text() == ""


@pytest.mark.parametrize("stem", STEMS)
def test_outputs_are_those_of_this_code(stem):
    assert not build.stale(stem), f"out of date: python tools/build.py {stem}"


@pytest.mark.parametrize("stem", STEMS)
def test_notebook_was_run_once_from_top_to_bottom_and_stripped(stem):
    notebook = build.read(stem)
    code = cells(stem)
    counts = [cell["execution_count"] for cell in code if source(cell).strip()]
    assert counts == list(range(1, len(counts) + 1))
    allowed = {"kernelspec", "language_info", "jupytext", "minillm", "widgets"}
    assert set(notebook["metadata"]) <= allowed
    assert "version" not in notebook["metadata"]["language_info"]
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}, cell["metadata"]
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", output.get("evalue")
            assert output.get("name") != "stderr", output.get("text")
            shown = json.dumps(output.get("data", {}).get("text/plain", ""))
            shown += "".join(output.get("text", ""))
            assert not re.search(r"\b0x[0-9a-f]{6,}", shown), f"an address: {shown}"
        names = [output.get("name") for output in cell["outputs"]]
        assert all(a is None or a != b for a, b in pairwise(names)), "printed in pieces"


@pytest.mark.parametrize("stem", STEMS)
def test_setup_cell_is_the_same_everywhere(stem):
    first = source(cells(stem)[0])
    assert first.startswith(FIRST_CODE)
    assert first == source(cells(STEMS[0])[0])


def longest(text: str) -> int:
    """How many lines an exported cell may have, by what it defines first."""
    body = ast.parse(text).body
    names = [n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    only_imports = all(isinstance(n, ast.Import | ast.ImportFrom) for n in body)
    contains = only_imports or CONTAINERS.intersection(names[:1])
    return CONTAINER_LINES if contains else EXPORTED_LINES


def test_every_container_is_one():
    """A name that no longer needs more than 32 lines leaves the list."""
    found = set()
    for stem in CHAPTERS:
        for text in map(source, cells(stem)):
            lines = [line for line in text.splitlines() if line.strip()]
            if "#| export" in text and len(lines) > EXPORTED_LINES:
                found |= set(re.findall(r"^class (\w+)", text, re.M)[:1])
    assert found >= CONTAINERS, CONTAINERS - found


@pytest.mark.parametrize("stem", STEMS)
def test_cells_are_short_and_explained(stem):
    run = 0
    for cell in build.read(stem)["cells"]:
        text = source(cell)
        if cell["cell_type"] != "code":
            run = 0
            continue
        run += 1
        lines = [line for line in text.splitlines() if line.strip()]
        limit = longest(text) if "#| export" in text else LINES
        if not text.startswith(FIRST_CODE) and not tags(cell) & FOLDED:
            assert len(lines) <= limit, f"{len(lines)} lines:\n{text[:200]}"
        assert run <= CELLS_IN_A_ROW, f"{run} code cells in a row at:\n{text[:200]}"
        assert not re.search(r"^[!%]", text, re.M), f"shell or magic:\n{text[:200]}"


@pytest.mark.parametrize("stem", STEMS)
def test_what_cannot_repeat_is_followed_by_a_bound(stem):
    """A cell with the tag that lets its output differ is checked by the next ones."""
    code = cells(stem)
    for here, after in zip(code, [*code[1:], None], strict=True):
        timing = re.search(r"perf_counter|timeit|process_time", source(here))
        shown = "Widget" in source(here) or "HTML(" in source(here)
        if "nbval-ignore-output" in tags(here) and not timing and not shown:
            both = source(here) + (source(after) if after else "")
            assert "assert" in both, f"unchecked:\n{source(here)[:300]}"


@pytest.mark.parametrize("stem", STEMS)
def test_images_have_alt_text_and_links_lead_somewhere(stem):
    for cell in cells(stem, "markdown"):
        for bang, text, target in re.findall(
            r"(!?)\[([^\]]*)\]\(([^)\s#]+)[^)]*\)", re.sub("`[^`]*`", "", source(cell))
        ):
            assert text.strip(), f"no alt text: {target}"
            if not re.match(r"[a-z]+:", target):
                assert (Path("notebooks") / target).exists(), target
            assert bang == "" or "{" not in text


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            found.add(("minillm." if node.level else "") + (node.module or ""))
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def test_imports_go_only_to_earlier_chapters():
    """Chapters reach earlier ones and appendices, and never, by any way, later ones."""
    order = [f"minillm.{build.module_of(stem)}" for stem in CHAPTERS]
    direct = {}
    for module in order:
        names = imported_modules(Path(module.replace(".", "/") + ".py"))
        direct[module] = {name for name in names if name.startswith("minillm.")}
        packages = {name.split(".")[0] for name in names}
        assert not packages & {"transformers", "littleworld"}, module

    def reached(module, path=()):
        assert module not in path, f"a circle of imports: {path}"
        return {module}.union(*(reached(m, (*path, module)) for m in direct[module]))

    appendices = {m for m, s in zip(order, CHAPTERS, strict=True) if s[0] == "a"}
    for place, module in enumerate(order):
        if module not in appendices:
            assert reached(module) - appendices <= set(order[: place + 1]), module


def test_every_public_name_has_one_owner():
    owner = {}
    for stem in CHAPTERS:
        tree = ast.parse(Path("minillm", f"{build.module_of(stem)}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert node.name not in owner, (
                    f"{node.name}: {owner[node.name]}, {stem}"
                )
                owner[node.name] = stem
                if not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{node.name} has no docstring"
    for stem in STEMS:
        for cell in cells(stem):
            for node in ast.parse(source(cell)).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    assert owner.get(node.name, stem) == stem, (
                        f"{stem} defines {node.name}, which {owner[node.name]} owns"
                    )


def test_every_notebook_is_in_the_table_of_contents():
    toc = yaml.safe_load(Path("book/_toc.yml").read_text(encoding="utf-8"))
    files = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    listed = [Path(name).name for name in files if name.startswith("notebooks/")]
    assert sorted(listed) == STEMS


def test_environment_files_agree():
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in Path("constraints.txt").read_text().splitlines()
        if "==" in line
    )
    extras = project["project"]["optional-dependencies"].values()
    needed = [*project["project"]["dependencies"], *(r for e in extras for r in e)]
    for requirement in needed:
        name = re.match(r"[\w-]+", requirement)[0].lower()
        assert name == "minillm" or name in pinned, f"{requirement} is not pinned"
    assert not [version for version in pinned.values() if "+" in version]
    environment = yaml.safe_load(Path("environment.yml").read_text())
    assert environment["dependencies"][-1] == {
        "pip": ["-c constraints.txt", "-e .[all]"]
    }
    lowest = project["project"]["requires-python"].removeprefix(">=")
    assert f"python={lowest}" in environment["dependencies"]


def test_nothing_of_a_machine_is_committed():
    place = re.compile(r"(?<![\w.:/])/(?:home|root|work|tmp/[a-z]+|Users)/\w")
    binary = {".png", ".safetensors", ".npy", ".ico", ".woff2"}
    for path in tracked():
        if path.suffix in binary or path == Path("tests/test_course.py"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not place.search(text), f"{path}: {place.search(text)[0]}"
        assert path.stat().st_size < 10e6, f"{path} is over 10 MB"


def test_nothing_is_left_to_be_written():
    stub = re.compile(
        r"\b(TODO|FIXME|XXX|NotImplementedError|placeholder(?!=)|coming soon)\b"
    )
    for path in tracked():
        if path.suffix in {".py", ".md"} and path != Path("tests/test_course.py"):
            found = stub.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path} says {found[0]}"


def test_no_network_is_reachable_from_the_processes_of_the_tests(tmp_path, monkeypatch):
    log = tmp_path / "blocked"
    monkeypatch.setenv("MINILLM_BLOCKED", str(log))
    code = "import urllib.request as u; u.urlopen('http://{}', timeout=2)"
    for host in ("192.0.2.1", "example.org"):
        command = [sys.executable, "-c", code.format(host)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode and "run without a network" in done.stderr
    assert log.read_text().split() == ["192.0.2.1", "example.org"]


def test_readme_gives_the_two_commands_and_the_tree():
    readme = Path("README.md").read_text(encoding="utf-8")
    assert "make lab" in readme and "make test" in readme
    for stem in STEMS:
        assert stem in readme, f"{stem} is not in the map of chapters"
    for link in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert Path(link).exists(), link
    assert Path("book/transcript.md").read_text(encoding="utf-8") in readme


def test_metadata_of_widgets_is_numbered():
    for stem in STEMS:
        state = build.read(stem)["metadata"].get("widgets", {})
        text = json.dumps(state)
        assert not re.search(r"\b(?!0{8})[0-9a-f]{32}\b", text)
