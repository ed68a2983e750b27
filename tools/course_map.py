"""Draw the course map, and one map per chapter with its box lit."""

import sys
from pathlib import Path

FIGURES = Path(__file__).resolve().parent.parent / "book" / "figures"
PARTS = {
    "text": ["01 data", "02 tokenizer"],
    "model": ["03 attention", "04 mlp", "05 decoder layer", "06 transformer"],
    "training": ["07 generation", "08 optimization", "09 pretraining"],
    "answers": ["10 sft", "11 chat", "12 scaling out"],
}
NAMES = {"04 mlp": "04 MLP", "10 sft": "10 SFT"}
WIDTH, ROW, BOX, GAP, LEFT = 572, 48, 114, 8, 80
LIT, PLAIN, LINE, INK = "#0072B2", "#EAF2F8", "#7A9CB8", "#1B2A38"
STYLE = 'font-family="system-ui, sans-serif" font-size="12"'


def box(x: int, y: int, title: str, lit: bool) -> str:
    fill, ink = (LIT, "#FFFFFF") if lit else (PLAIN, INK)
    number, name = NAMES.get(title, title).split(" ", 1)
    return (
        f'<rect x="{x}" y="{y}" width="{BOX}" height="{ROW - 14}" rx="6" '
        f'fill="{fill}" stroke="{LINE}"/>'
        f'<text x="{x + BOX / 2}" y="{y + 21}" text-anchor="middle" fill="{ink}">'
        f'<tspan font-weight="600">{number}</tspan> {name}</text>'
    )


def draw(lit: str = "") -> str:
    height = ROW * len(PARTS) + 14
    label = "Map of the course" + (f"; you are at {lit}" if lit else "")
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-label="{label}" {STYLE}>',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#FFFFFF"/>',
    ]
    for row, (part, titles) in enumerate(PARTS.items()):
        y = 14 + ROW * row
        lines.append(
            f'<text x="12" y="{y + 21}" fill="#51677A" '
            f'font-style="italic">{part}</text>'
        )
        for column, title in enumerate(titles):
            x = LEFT + column * (BOX + GAP)
            lines.append(box(x, y, title, title == lit))
            if column:
                y_mid = y + (ROW - 14) / 2
                lines.append(f'<path d="M{x - GAP} {y_mid}h{GAP}" stroke="{LINE}"/>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def maps() -> dict[str, str]:
    """File name -> content, of every map."""
    titles = [title for titles in PARTS.values() for title in titles]
    lit = {f"course_map_{t[:2]}.svg": draw(t) for t in titles}
    return {"course_map.svg": draw(), **lit}


def main() -> int:
    for name, text in maps().items():
        (FIGURES / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
