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
MODULES = [f"minillm.{build.module_of(stem)}" for stem in CHAPTERS]
FIRST_CODE = "# Set-up, the same in every chapter"
LINES, EXPORTED_LINES, CONTAINER_LINES, CELLS_IN_A_ROW = 15, 32, 100, 4
CODE_CELLS, WORDS = 60, 4500  # a chapter's
MODULE_NAMES, ALL_NAMES, ALL_LINES, WING_LINES = 12, 180, 4000, 3050
FOLDED = {"hide-input", "hide-cell"}


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
    notebooks = sorted(path.stem for path in Path("notebooks").glob("*.ipynb"))
    twins = sorted(path.stem for path in Path("notebooks/text").glob("*.md"))
    assert sorted(STEMS) == notebooks == twins


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
    there = [p.stem for p in Path("minillm").glob("*.py") if p.stem[0] != "_"]
    assert sorted(owners) == sorted(there)
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
    """How many lines an exported cell may have: a class that holds parts has more."""
    kinds = [type(node) for node in ast.parse(text).body]
    one_object = kinds.count(ast.ClassDef) == 1 or set(kinds) <= IMPORTS
    return CONTAINER_LINES if one_object else EXPORTED_LINES


IMPORTS = {ast.Import, ast.ImportFrom}


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


@pytest.mark.parametrize("stem", STEMS)
def test_a_chapter_is_one_sitting(stem):
    prose = " ".join(source(cell) for cell in cells(stem, "markdown"))
    titles = [source(cell) for cell in cells(stem, "markdown")]
    assert len(re.findall(r"^# ", "\n".join(titles), re.M)) == 1
    assert len(cells(stem)) <= CODE_CELLS
    assert len(prose.split()) <= WORDS


def parse(path: str | Path) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def public(stem: str) -> list[str]:
    """The names in a chapter's `__all__`."""
    tree = parse(f"minillm/{build.module_of(stem)}.py")
    targets = [n for n in tree.body if isinstance(n, ast.Assign)]
    (listed,) = [n.value for n in targets if n.targets[0].id == "__all__"]
    return ast.literal_eval(listed)


def test_chapters_are_thin_and_the_wings_are_short():
    names = {stem: public(stem) for stem in CHAPTERS}
    assert all(len(found) <= MODULE_NAMES for found in names.values()), names
    assert sum(map(len, names.values())) <= ALL_NAMES
    lines = {p: len(p.read_text("utf-8").splitlines()) for p in modules()}
    chapters = {p: n for p, n in lines.items() if p.parent == Path("minillm")}
    assert sum(chapters.values()) <= ALL_LINES, chapters
    assert sum(lines.values()) - sum(chapters.values()) <= WING_LINES, lines


def modules() -> list[Path]:
    return sorted(p.relative_to(ROOT) for p in (ROOT / "minillm").rglob("*.py"))


def test_appendices_export_nothing():
    assert not [stem for stem in CHAPTERS if stem.startswith("appendix")]
    for stem in STEMS:
        exports = ["#| export" in source(cell) for cell in cells(stem)]
        assert any(exports) == (stem in CHAPTERS)


def imported_modules(path: Path) -> set[str]:
    """What a file imports, inside of functions too."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    ours = [name for name in found if name.startswith("minillm.")]
    return {name for name in found if name not in ours or is_module(name)}


def is_module(name: str) -> bool:
    path = Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_imports_go_only_to_earlier_chapters():
    """Lower wing <- chapters in their order <- upper wing."""
    place = {module: number for number, module in enumerate(MODULES)}
    for path in modules():
        own = ".".join(path.with_suffix("").parts)
        found = imported_modules(path)
        packages = {name.split(".")[0] for name in found}
        assert not packages & {"transformers", "littleworld"}, path
        wing = own.split(".")[1]
        for name in (n for n in found if n.startswith("minillm.")):
            if wing == "support":
                assert name.startswith("minillm.support"), f"{own} imports {name}"
            elif own in place:
                lower = name.startswith("minillm.support")
                assert lower or place[name] < place[own], f"{own} imports {name}"


def test_notebooks_import_no_later_chapter():
    """Cells may use the upper wing; what they export may not."""
    place = {module: number for number, module in enumerate(MODULES)}
    for stem in CHAPTERS:
        own = place[f"minillm.{build.module_of(stem)}"]
        for cell in cells(stem):
            for name in re.findall(r"^from (minillm\.\w+) ", source(cell), re.M):
                assert place.get(name, -1) <= own, f"{stem} imports {name}"


def defined(tree: ast.Module) -> dict[str, str]:
    """Every name that the top level of a module defines, constants and aliases too.

    With what it stands for: of an alias what was imported; of all others "".
    """
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = ""
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            nodes = [part for target in targets for part in ast.walk(target)]
            found |= {n.id: "" for n in nodes if isinstance(n, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            source = getattr(node, "module", "")
            aliased = [a for a in node.names if a.asname and a.asname != a.name]
            found |= {a.asname: f"{source}.{a.name}" for a in aliased}
    return {name: what for name, what in found.items() if not name.startswith("_")}


def test_every_public_name_has_one_owner():
    """No name has two meanings: in chapters, wings, or a later notebook's cells."""
    owner: dict[str, tuple[Path, str]] = {}
    for path in modules():
        names = defined(parse(path))
        if path.parent.name == "commands":  # each subcommand has its own
            names.pop("DEFAULTS", None)
        for name, what in names.items():
            before, same = owner.setdefault(name, (path, what))
            assert before == path or (what and what == same), (
                f"{name}: {before}, {path}"
            )
    exported = {name: stem for stem in CHAPTERS for name in public(stem)}
    for stem in STEMS:
        for cell in cells(stem):
            for node in ast.parse(source(cell)).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    owned = exported.get(node.name, stem)
                    assert owned == stem, f"{stem} defines {node.name} again"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_what_is_public_has_a_docstring(path):
    tree = parse(path)
    assert path.name == "__init__.py" or ast.get_docstring(tree), path
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
            assert ast.get_docstring(node), f"{path}: {node.name} has no docstring"


def test_every_public_name_is_used_elsewhere_or_is_what_the_chapter_is_about():
    """Used by another module, a test or another notebook, or named in its own text."""
    texts = {path: path.read_text("utf-8") for path in modules()}
    texts |= {p: p.read_text("utf-8") for p in Path("tests").glob("*.py")}
    texts |= {p: p.read_text("utf-8") for p in Path("notebooks/text").glob("*.md")}
    for stem in CHAPTERS:
        own = {Path("minillm", f"{build.module_of(stem)}.py")}
        own.add(Path("notebooks/text", f"{stem}.md"))
        table = texts[Path("notebooks/text", f"{stem}.md")].split("## What we have now")
        for name in public(stem):
            word = re.compile(rf"\b{name}\b")
            elsewhere = any(word.search(t) for p, t in texts.items() if p not in own)
            assert elsewhere or word.search(table[-1]), f"{stem}: {name} has no user"


def test_what_is_imported_is_declared():
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.match(r"[\w-]+", r)[0].lower() for r in project["dependencies"]}
    optional = {"datasketch", "wandb", "transformers", "tokenizers", "ipywidgets"}
    optional |= {
        "sentencepiece",
        "IPython",
    }  # of the extra `course`, or named in errors
    standard = set(sys.stdlib_module_names)
    for path in modules():
        for name in {name.split(".")[0] for name in imported_modules(path)}:
            known = standard | {"minillm", "littleworld"} | optional
            assert name in known or name.replace("_", "-") in {
                d.replace("_", "-") for d in declared
            }, f"{path} imports {name}, which pyproject.toml does not declare"


def test_every_notebook_is_in_the_table_of_contents():
    toc = yaml.safe_load(Path("book/_toc.yml").read_text(encoding="utf-8"))
    files = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    listed = [Path(name).name for name in files if name.startswith("notebooks/")]
    assert listed == STEMS


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
    tree = readme.split("## What lies where")[-1].split("```")[1]
    for path in modules():
        name = f"{path.parent.name}/" if path.name == "__init__.py" else path.name
        assert re.search(rf"(?<![\w/]){name}", tree), f"{path} is not in the tree"
    for link in re.findall(r"\]\(([^)#:]+)\)", readme):
        assert Path(link).exists(), link
    assert Path("book/transcript.md").read_text(encoding="utf-8") in readme


def test_metadata_of_widgets_is_numbered():
    for stem in STEMS:
        state = build.read(stem)["metadata"].get("widgets", {})
        text = json.dumps(state)
        assert not re.search(r"\b(?!0{8})[0-9a-f]{32}\b", text)
