"""Code cells: where an exported one is saved, and which ones are folded.

`#| export` becomes a coloured edge and a caption; cells with `#| default_exp` are left
out; the set-up cell and long cells are folded under a line that says what they hold.
What a reader downloads keeps its lines.
"""

import ast
import json
import re
from html import escape

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode, depart_HideCellInput
from sphinx.transforms.post_transforms import SphinxPostTransform

from .chapters import stem_of

LONG, LONG_EXPORTED = 25, 60  # lines; a longer cell is folded
WIDGET = "application/vnd.jupyter.widget-view+json"


def defined(code: str) -> list[str]:
    """Names of the functions and classes that a cell defines."""
    kinds = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
    try:
        return [node.name for node in ast.parse(code).body if isinstance(node, kinds)]
    except SyntaxError:
        return []


def summary(cell, tags: set, lines: list[str], names: list[str]) -> str:
    """What the line over a folded cell says it holds."""
    size = f"{len(lines)} lines"
    if "hide-cell" in tags:
        return "the solution" if "solution" in "".join(lines) else "the cell"
    if lines and lines[0].startswith("# Set-up"):
        return "the set-up, the same in every chapter"
    if names:
        return f"{', '.join(names[:3])}{', …' * (len(names) > 3)} ({size})"
    if any("image/png" in output.get("data", {}) for output in cell["outputs"]):
        return f"the code of the figure ({size})"
    return f"the code ({size})"


def alternative(code: str, caption: str) -> str:
    """What a plot shows, for who can't see it: its axes, and what stands below it."""

    def label(name: str) -> str:
        found = re.search(rf"""{name}(?:\(|=)f?["']([^"']+)["']""", code)
        return re.sub(r"[\\${}]", "", found[1]) if found else ""

    x, y = label("xlabel"), label("ylabel")
    axes = f"Plot of {y} over {x}. " if x and y else "Plot. "
    caption = " ".join(re.sub(r"[*`$]|\(http.*?\)", "", caption).split())
    return axes + (re.split(r"(?<=[.:]) ", caption)[0] if caption else "")


def prepare(cell, module: str, after: str) -> None:
    lines = "".join(cell["source"]).splitlines(keepends=True)
    marks = [line for line in lines if line.startswith("#|")]
    lines = [line for line in lines if line not in marks]
    metadata = cell.setdefault("metadata", {})
    tags = set(metadata.get("tags", []))
    exported = any(re.match(r"#\| *exports?\b", mark) for mark in marks)
    names = defined("".join(lines))
    if any("default_exp" in mark or mark.strip() == "#| hide" for mark in marks):
        tags.add("remove-cell")
    if exported and module:
        metadata["saved_to"], metadata["defines"] = module, names
    limit = LONG_EXPORTED if exported else LONG
    folds = len(lines) > limit or (lines and lines[0].startswith("# Set-up"))
    if folds and "hide-cell" not in tags:
        tags.add("hide-input")
    text = summary(cell, tags, lines, names)
    prompts = {"code_prompt_show": f"Show {text}", "code_prompt_hide": f"Hide {text}"}
    prompts["image"] = {"alt": alternative("".join(lines), after)}
    metadata.update(tags=sorted(tags), mystnb=prompts)
    cell["source"] = "".join(lines)


def drop_hidden_widgets(notebook) -> None:
    """A widget stored beside its picture in HTML is shown as that: no scripts then."""
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    shown = [output["data"] for output in outputs if WIDGET in output.get("data", {})]
    for data in shown:
        if "text/html" in data:
            del data[WIDGET]
    if not any(WIDGET in data for data in shown):
        notebook["metadata"].pop("widgets", None)


def rewrite(app, docname, source):
    if not stem_of(docname):
        return
    notebook = json.loads(source[0])
    found = re.search(r"#\| *default_exp +(\w+)", source[0])
    cells = notebook["cells"]
    for i, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            texts = (c for c in cells[i + 1 :] if c["cell_type"] == "markdown")
            caption = "".join(next(texts, {"source": ""})["source"])
            prepare(cell, found[1] if found else "", caption)
    drop_hidden_widgets(notebook)
    source[0] = json.dumps(notebook)


class Captions(SphinxPostTransform):
    """Over every cell that is saved to a module: where, with a link to its page."""

    default_priority = 210  # after myst-nb has folded what is to be folded

    def run(self, **kwargs):
        for cell in self.document.findall(nodes.container):
            about = cell.get("cell_metadata", {})
            if "saved_to" not in about:
                continue
            path = nodes.literal(text=f"minillm/{about['saved_to']}.py")
            caption = nodes.paragraph(classes=["saved-to"])
            caption += [nodes.Text("saved to "), self.link(path, about)]
            cell["classes"].append("exported")
            cell["ids"] += [f"def-{name}" for name in about["defines"]]
            cell.insert(0, caption)

    def link(self, path, about):
        builder, module = self.app.builder, about["saved_to"]
        if builder.format != "html" or f"book/api/{module}" not in self.env.found_docs:
            return path
        page = builder.get_relative_uri(self.env.docname, f"book/api/{module}")
        public = next((n for n in about["defines"] if n[0] != "_"), "")
        anchor = f"#minillm.{module}.{public}" if public else ""
        return nodes.reference("", "", path, internal=True, refuri=page + anchor)


def visit_fold(self, node):
    """As myst-nb does it, without the label that would hide the line's own words."""
    classes = " ".join(node["classes"])
    self.body.append(f'<details class="admonition hide {classes}"><summary>')
    for state, text in (("collapsed", "show"), ("expanded", "hide")):
        words = escape(node[f"prompt_{text}"])
        self.body.append(f'<span class="{state} admonition-title">{words}</span>')
    self.body.append("</summary>\n")


def setup(app):
    app.connect("source-read", rewrite)
    app.add_post_transform(Captions)
    fold = (visit_fold, depart_HideCellInput)
    app.add_node(HideCodeCellNode, override=True, html=fold)
