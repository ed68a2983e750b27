"""Draw the course map, one per chapter with its box lit, and one whose boxes are links.

`book/figures/course_map.svg` and `course_map_NN.svg` are pictures;
`book/figures/course_map_links.svg` is put into the front page itself, where its boxes
lead to the chapters.
"""

import sys
from pathlib import Path

FIGURES = Path(__file__).resolve().parent.parent / "book" / "figures"
PARTS = {
    "text": ["01 data", "02 tokenizer"],
    "model": ["03 attention", "04 mlp", "05 decoder layer", "06 transformer"],
    "training": ["07 generation", "08 optimization", "09 pretraining"],
    "answers": ["10 sft", "11 chat"],
    "larger": ["12 scaling out"],
}
NAMES = {"04 mlp": "04 MLP", "10 sft": "10 SFT"}
WIDTH, ROW, BOX, GAP, LEFT = 440, 44, 168, 10, 82
LIT, PLAIN, LINE, INK = "#0072B2", "#EAF2F8", "#7A9CB8", "#1B2A38"
STYLE = 'font-family="system-ui, sans-serif" font-size="15"'
FOCUS = (
    "<style>.course-map a:focus rect, .course-map a:hover rect "
    "{stroke: #0072B2; stroke-width: 3} "
    ".course-map a {text-decoration: none}</style>"
)


def box(x: int, y: int, title: str, lit: bool) -> str:
    fill, ink = (LIT, "#FFFFFF") if lit else (PLAIN, INK)
    number, name = NAMES.get(title, title).split(" ", 1)
    return (
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{ROW - 10}" rx="6" '
        f'fill="{fill}" stroke="{LINE}"/>'
        f'<text x="{x + BOX / 2:g}" y="{y + 22}" text-anchor="middle" fill="{ink}">'
        f'<tspan font-weight="600">{number}</tspan> {name}</text>'
    )


def link(title: str, inside: str) -> str:
    """A box that leads to its chapter, as seen from the front page."""
    number, name = NAMES.get(title, title).split(" ", 1)
    stem = title.replace(" ", "_")
    label = f"chapter {number}: {name}"
    return f'<a href="../notebooks/{stem}.html" aria-label="{label}">{inside}</a>'


def rows() -> list[tuple[str, list[str]]]:
    """The parts in rows of two boxes; a part's name stands before its first row."""
    found = []
    for part, titles in PARTS.items():
        for start in range(0, len(titles), 2):
            found.append(("" if start else part, titles[start : start + 2]))
    return found


def draw(lit: str = "", links: bool = False) -> str:
    height = ROW * len(rows()) + 14
    label = "Map of the course" + (f"; you are at {lit}" if lit else "")
    role = 'role="group" class="course-map"' if links else 'role="img"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
        f'viewBox="0 0 {WIDTH} {height}" {role} aria-label="{label}" {STYLE}'
        + (' style="max-width: 100%; height: auto">' if links else ">"),
        *([FOCUS] if links else []),
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#FFFFFF"/>',
    ]
    for row, (part, titles) in enumerate(rows()):
        y = 12 + ROW * row
        if part:
            lines.append(
                f'<text x="10" y="{y + 22}" fill="#51677A" '
                f'font-style="italic">{part}</text>'
            )
        for column, title in enumerate(titles):
            x = LEFT + column * (BOX + GAP)
            inside = box(x, y, title, title == lit)
            lines.append(link(title, inside) if links else inside)
            if column:
                y_mid = y + (ROW - 10) / 2
                lines.append(f'<path d="M{x - GAP} {y_mid:g}h{GAP}" stroke="{LINE}"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def maps() -> dict[str, str]:
    """File name -> content, of every map."""
    titles = [title for titles in PARTS.values() for title in titles]
    lit = {f"course_map_{t[:2]}.svg": draw(t) for t in titles}
    return {
        "course_map.svg": draw(),
        "course_map_links.svg": draw(links=True),
        **lit,
    }


def main() -> int:
    for name, text in maps().items():
        (FIGURES / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
