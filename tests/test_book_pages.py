"""The book's own pages: what they quote, count and link to is there."""

import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
sys.path.insert(0, str(ROOT / "tools"))

import transcript  # noqa: E402


def code_of_the_course() -> str:
    """All code, with f-strings as a reader sees them: `…` for what is filled in."""
    files = [*ROOT.glob("minillm/**/*.py"), *ROOT.glob("tools/*.py")]
    text = "\n".join(path.read_text("utf-8") for path in files)
    text = re.sub(r'"\s*\n\s*f?"', "", text)
    return re.sub(r"\{[^{}]*\}", "…", re.sub(r"\{(\w+)=\}", r"\1=…", text))


def quoted_messages() -> list[str]:
    page = (BOOK / "troubleshooting.md").read_text("utf-8")
    ours, _, _ = page.partition("## From other programs")
    heads = re.findall(r"^(.+)\n: ", ours, re.M)
    return [m for head in heads for m in re.findall(r"`([^`]{12,})`", head)]


FOREIGN = (  # another program says this, or begins so
    "command not found",
    "No module",
    "is not recognized",
    "StopIteration",
    "No space left on device",
    "Permission denied",
)


@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_is_in_the_code(message):
    if any(text in message for text in FOREIGN):
        pytest.skip("another program's message")
    code = code_of_the_course()
    pieces = [p.strip() for p in re.split(r"…|\d+\.\d+|[:;,.] ", message)]
    missing = [p for p in pieces if len(p) > 7 and p not in code]
    assert not missing, f"no code says {missing}"


def test_the_transcript_is_what_the_shipped_model_says():
    assert transcript.PAGE.read_text("utf-8") == transcript.page(transcript.ask())


def pages_in_toc() -> set[str]:
    found, todo = set(), [yaml.safe_load((BOOK / "_toc.yml").read_text("utf-8"))]
    while todo:
        entry = todo.pop()
        found |= {entry[key] for key in ("root", "file") if key in entry}
        for key in ("parts", "chapters", "sections"):
            todo += entry.get(key, [])
    return found


def test_every_page_and_notebook_is_in_the_table_of_contents():
    pages = {f"book/{p.stem}" for p in BOOK.glob("*.md")} - {"book/transcript"}
    notebooks = {f"notebooks/{p.stem}" for p in ROOT.glob("notebooks/*.ipynb")}
    assert pages | notebooks <= pages_in_toc()


def test_papers_with_an_address_in_a_chapter_are_in_the_bibliography():
    chapters = "\n".join(p.read_text("utf-8") for p in ROOT.glob("notebooks/text/*"))
    numbers = set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", chapters))
    known = (BOOK / "references.bib").read_text("utf-8")
    assert not {n for n in numbers if n not in known}


def test_the_bibliography_has_no_entry_twice_and_an_address_where_there_is_one():
    text = (BOOK / "references.bib").read_text("utf-8")
    keys = re.findall(r"^@\w+\{(\w+),", text, re.M)
    assert len(keys) == len(set(keys)) > 60
    entries = re.split(r"^@", text, flags=re.M)[1:]
    without = [e[:40] for e in entries if not re.search(r"eprint|doi|url", e)]
    assert len(without) <= 2  # an article of a magazine, a report


def test_terms_of_the_glossary_are_sorted_and_explained():
    text = (BOOK / "glossary.md").read_text("utf-8")
    body = text.split("```{glossary}\n")[1].split("```")[0]
    entries = [block.splitlines() for block in body.strip().split("\n\n")]
    first = [lines[0].lower() for lines in entries]
    assert first == sorted(first) and len(first) > 100
    assert all(lines[-1].startswith("  ") for lines in entries)


def minutes_of_exercises() -> dict[str, dict[int, int]]:
    """Chapter number -> exercise number -> the minutes that it states."""
    found = {}
    for path in ROOT.glob("notebooks/text/[01]*.md"):
        parts = re.split(r"^### (\d+)\. ", path.read_text("utf-8"), flags=re.M)[1:]
        stated = [re.search(r"(\d+) minutes", text) for text in parts[1::2]]
        numbers = map(int, parts[::2])
        found[path.stem[:2]] = {
            n: int(m[1]) for n, m in zip(numbers, stated, strict=True) if m
        }
    return found


def expand(numbers: str) -> list[int]:
    """`1-3, 5` -> [1, 2, 3, 5]"""
    ends = [part.split("-") for part in numbers.split(",")]
    return [n for e in ends for n in range(int(e[0]), int(e[-1]) + 1)]


def test_the_semester_plan_adds_up():
    stated, page = minutes_of_exercises(), (BOOK / "teachers.md").read_text("utf-8")
    weeks = re.findall(r"^\| \d+ \| (.+?) \| .+? \| (.+?) \| (\d+) \|$", page, re.M)
    assert len(weeks) == 12
    for chapters, exercises, minutes in weeks:
        first = re.search(r"notebooks/(\d\d)", chapters)[1]
        groups = [group.rpartition(": ") for group in exercises.split("; ")]
        total = sum(stated[c or first][n] for c, _, e in groups for n in expand(e))
        assert total == int(minutes), f"{chapters}: book/teachers.md, {total} minutes"


def test_the_minutes_of_the_chapters_are_those_of_the_readme():
    row = r"^\| \[[^\]]+\]\(\S*notebooks/(\w+)\.ipynb\) .*\| ([^|]+) \| ([^|]+) \|$"
    files = ROOT / "README.md", BOOK / "index.md"
    readme, front = (re.findall(row, f.read_text("utf-8"), re.M) for f in files)
    assert front == readme and len(front) == len(list(ROOT.glob("notebooks/*.ipynb")))
