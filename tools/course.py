"""Write what lists the chapters, from book/course.toml: one list, many places.

    python tools/course.py      file names, links, contents, map, tables

A chapter's files are NUMBER_NAME. If its number in book/course.toml is another one than
that of its files, they are renamed, and every link and mention follows.
"""

import json
import re
import sys
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS, LINES = 200, 15  # read in a minute
FOLDED = {"hide-cell", "hide-input"}
TEXTS = (
    "notebooks/text/*.md",
    "book/*.md",
    "book/*.bib",
    "*.md",
    "data/*.md",
    ".github/**/*.md",
)
CODE = (
    "minillm/support/*.py",
    "minillm/app/**/*.py",
    "data/**/*.py",
    "benchmarks/*.py",
    "tools/*.py",
    "tests/*.py",
    "tests/site/*.py",
)


@dataclass(frozen=True)
class Chapter:
    """A row of book/course.toml."""

    number: str
    name: str
    part: str
    builds: str
    checks: str
    run: str
    trains: str
    title: str = ""

    @property
    def stem(self) -> str:
        return f"{self.number}_{self.name}"

    @property
    def heading(self) -> str:
        return self.title or self.name.replace("_", " ").capitalize()

    @property
    def numbered(self) -> str:
        """As a table shows it: 03 Attention, The command line."""
        number = self.number if self.number.isdigit() else ""
        return f"{number} {self.heading}".strip()


def manifest(root: Path = ROOT) -> dict:
    return tomllib.loads((root / "book/course.toml").read_text(encoding="utf-8"))


def chapters(root: Path = ROOT) -> list[Chapter]:
    """All chapters in reading order; ValueError for a name or number given twice."""
    found = [Chapter(**row) for row in manifest(root)["chapters"]]
    for names in ([c.name for c in found], [c.stem for c in found]):
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"book/course.toml lists {twice.pop()} twice")
    return sorted(found, key=lambda chapter: (chapter.number, chapter.name))


def write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# File names and links


def rename(root: Path, course: list[Chapter]) -> dict[str, str]:
    """Give files the numbers of the list; old -> new number of those that moved."""
    moved = {}
    for chapter in course:
        for folder, kind in (("notebooks/text", "md"), ("notebooks", "ipynb")):
            for path in (root / folder).glob(f"*_{chapter.name}.{kind}"):
                number = path.stem.removesuffix(f"_{chapter.name}")
                if re.fullmatch(r"\d\d|appendix", number) and number != chapter.number:
                    path.rename(path.with_stem(f"{chapter.stem}.moving"))
                    moved[number] = chapter.number
    for path in [*(root / "notebooks").rglob("*.moving.*")]:
        path.rename(path.with_stem(path.stem.removesuffix(".moving")))
    return moved


def relink(text: str, course: list[Chapter], moved: dict[str, str]) -> str:
    """Every stem and the number that stands for it, as the list has them."""
    known = {chapter.name: chapter for chapter in course}
    names = "|".join(sorted(known, key=len, reverse=True))
    digits = r"(?<![\w.])(?:\d\d|appendix)_"

    def linked(found: re.Match) -> str:
        chapter = known[found["name"]]
        shown = re.sub(r"\d\d", chapter.number, found["text"], count=1)
        shown = shown if chapter.number.isdigit() else found["text"]
        return f"[{shown}]({found['before']}{chapter.stem}.{found['after']})"

    def mention(found: re.Match) -> str:
        return re.sub(r"\b\d\d\b", lambda n: moved.get(n[0], n[0]), found[0])

    if moved:
        several = r"[Cc]hapters? \d\d(?:(?:, | and |, and |-| to )\d\d)*\b"
        text = re.sub(several, mention, text)
    link = rf"\[(?P<text>[^\]\n]*)\]\((?P<before>[^)\s]*?){digits}(?P<name>{names})\."
    text = re.sub(link + r"(?P<after>ipynb|html|md)\)", linked, text)
    return re.sub(
        rf"{digits}(?P<name>{names})\b(?!_)", lambda m: known[m["name"]].stem, text
    )


def point_at_map(text: str, chapter: Chapter) -> str:
    """The map of a chapter's page, with its own box lit by the fragment."""
    alt = f"The chapters in reading order; this is {chapter.numbered}"
    image = r"!\[[^\]]*\]\(\.\./book/figures/course_map[\w#.]*\)"
    return re.sub(
        image, f"![{alt}](../book/figures/course_map.svg#{chapter.name})", text
    )


KEPT = ("CHANGELOG.md", "test_manifest.py")  # old numbers are meant there


def links(root: Path, course: list[Chapter], moved: dict[str, str]) -> None:
    for pattern in (*TEXTS, *CODE):
        for path in root.glob(pattern):
            if path.name not in KEPT:
                before = path.read_text(encoding="utf-8")
                write(path, relink(before, course, moved))
    for chapter in course:
        path = root / "notebooks/text" / f"{chapter.stem}.md"
        if path.exists():
            write(path, point_at_map(path.read_text(encoding="utf-8"), chapter))


# Contents and tables


def reading_minutes(path: Path) -> int:
    """Minutes to read a notebook, but for its set-up and what is folded: 5, 10, ..."""
    minutes = 0.0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if text.startswith("# Set-up"):
            continue
        if cell["cell_type"] == "markdown":
            words = re.findall(r"\w+", re.sub(r"\]\([^)]*\)", "]", text))
            minutes += len(words) / WORDS
        elif not FOLDED & set(cell["metadata"].get("tags", [])):
            minutes += sum(1 for line in text.splitlines() if line.strip()) / LINES
    return max(round(minutes / 5) * 5, 5)


def read_time(root: Path, chapter: Chapter) -> str:
    return f"{reading_minutes(root / 'notebooks' / f'{chapter.stem}.ipynb')} min"


def module(root: Path, chapter: Chapter) -> str:
    """The module that a chapter exports, "" for none."""
    text = (root / f"notebooks/text/{chapter.stem}.md").read_text(encoding="utf-8")
    found = re.search(r"^#\| *default_exp +(\w+)", text, re.M)
    return found[1] if found else ""


def contents(root: Path, course: list[Chapter]) -> str:
    """book/_toc.yml."""
    parts: dict[str, list[str]] = {}
    for chapter in course:
        parts.setdefault(chapter.part, []).append(f"notebooks/{chapter.stem}")
    parts["Start"] = ["book/how_to_use", *parts.get("Start", [])]
    parts |= {
        p["part"]: [f"book/{n}" for n in p["files"]] for p in manifest(root)["pages"]
    }
    lines = ["# Written by tools/course.py from book/course.toml.", "format: jb-book"]
    lines += ["root: book/index", "parts:"]
    for part, files in parts.items():
        lines += [f"  - caption: {part}", "    chapters:"]
        for file in files:
            if file == "book/api":
                lines += ["      - file: book/api/index", "        title: API"]
                lines += ["        sections:", "          - glob: book/api/*"]
            else:
                lines.append(f"      - file: {file}")
    return "\n".join(lines) + "\n"


def readme_table(root: Path, course: list[Chapter]) -> list[str]:
    head = "| chapter | you build | checked against | saved to | read | run |"
    rows = [head, "|--|--|--|--|--|--|"]
    for c in course:
        saved = f"`{name}.py`" if (name := module(root, c)) else ""
        link = f"[{c.stem}](notebooks/{c.stem}.ipynb)"
        cells = [link, c.builds, c.checks, saved, read_time(root, c), c.run]
        rows.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return rows


def front_table(root: Path, course: list[Chapter]) -> list[str]:
    rows = ["| chapter | you build | read | run |", "|--|--|--|--|"]
    for c in course:
        link = f"[{c.numbered}](../notebooks/{c.stem}.ipynb)"
        rows.append(f"| {link} | {c.builds} | {read_time(root, c)} | {c.run} |")
    return rows


def fill(path: Path, name: str, lines: list[str]) -> None:
    """Put lines between the comments that mark a generated part of a page."""
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {name}: written by tools/course.py -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"{path.name} has no part between {begin} and {end}")
    before, rest = text.split(begin)
    write(path, "\n".join([f"{before}{begin}", *lines, end]) + rest.split(end)[1])


# The map

WIDTH, ROW, BOX, GAP, LEFT = 440, 44, 150, 10, 118
STYLE = """
.course-map text {font: 15px system-ui, sans-serif; fill: #1B2A38}
.course-map .part {fill: #51677A; font-style: italic; font-size: 13px}
.course-map .box rect {fill: #EAF2F8; stroke: #7A9CB8}
.course-map .box tspan {font-weight: 600}
.course-map .box:target rect, .course-map .lit rect {fill: #0072B2}
.course-map .box:target text, .course-map .lit text {fill: #FFFFFF}
.course-map a {text-decoration: none}
.course-map a:focus rect, .course-map a:hover rect {stroke: #0072B2; stroke-width: 3}
"""


def course_map(course: list[Chapter], linked: bool = False) -> str:
    """The numbered chapters in rows of two; the target of the address is lit."""
    rows: list[list[Chapter]] = []
    for chapter in (c for c in course if c.number.isdigit()):
        if rows and len(rows[-1]) < 2 and rows[-1][0].part == chapter.part:
            rows[-1].append(chapter)
        else:
            rows.append([chapter])
    height, seen, role = ROW * len(rows) + 14, set(), "group" if linked else "img"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" role="{role}" class="course-map" '
        f'aria-label="Map of the course" style="max-width: 100%; height: auto">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#FFFFFF"/>',
    ]
    for row, boxes in enumerate(rows):
        y, part = 12 + ROW * row, boxes[0].part
        if part not in seen:
            words = textwrap.wrap(part, 14)
            for line, text in enumerate(words):
                middle = y + 22 + 16 * line - 8 * (len(words) - 1)
                lines.append(f'<text class="part" x="8" y="{middle}">{text}</text>')
        seen.add(part)
        for column, chapter in enumerate(boxes):
            x = LEFT + column * (BOX + GAP)
            lines.append(draw_box(chapter, x, y, linked))
            if column:
                lines.append(f'<path d="M{x - GAP} {y + 17}h{GAP}" stroke="#7A9CB8"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def draw_box(chapter: Chapter, x: int, y: int, linked: bool) -> str:
    name = chapter.title or chapter.name.replace("_", " ")
    shape = (
        f'<g class="box" id="{chapter.name}">'
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{ROW - 10}" rx="6"/>'
        f'<text x="{x + BOX / 2:g}" y="{y + 22}" text-anchor="middle">'
        f"<tspan>{chapter.number}</tspan> {name}</text></g>"
    )
    label = f"chapter {chapter.number}: {name}"
    address = f"../notebooks/{chapter.stem}.html"
    link = f'<a href="{address}" aria-label="{label}">{shape}</a>'
    return link.replace(f' id="{chapter.name}"', "") if linked else shape


def sync(root: Path = ROOT) -> None:
    """Bring every place that lists chapters in line with book/course.toml."""
    course = chapters(root)
    links(root, course, rename(root, course))
    there = [c for c in course if (root / f"notebooks/{c.stem}.ipynb").exists()]
    write(root / "book/_toc.yml", contents(root, there))
    fill(root / "README.md", "chapters", readme_table(root, there))
    fill(root / "book/index.md", "chapters", front_table(root, there))
    write(root / "book/figures/course_map.svg", course_map(there))
    write(root / "book/figures/course_map_links.svg", course_map(there, linked=True))


if __name__ == "__main__":
    try:
        sync()
    except ValueError as error:
        sys.exit(f"course: {error}")
