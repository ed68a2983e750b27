"""Show where an exported cell is saved, instead of its `#|` lines.

`#| export` becomes a coloured edge and a caption; `#| default_exp` cells are left out;
the set-up cell is folded. What a reader downloads keeps its lines.
"""

import json
import re


def rewrite(app, docname, source):
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    notebook = json.loads(source[0])
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    found = re.search(r"^#\| *default_exp +(\w+)", text, re.M)
    module = found[1] if found else ""
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines(keepends=True)
        marks = [line for line in lines if line.startswith("#|")]
        tags = cell.setdefault("metadata", {}).setdefault("tags", [])
        if any("default_exp" in mark for mark in marks):
            tags.append("remove-cell")
        if any("export" in mark and "default" not in mark for mark in marks):
            tags.append(f"exported-{module}")
        if lines and lines[0].startswith("# Set-up"):
            tags.append("hide-input")
        cell["source"] = "".join(line for line in lines if line not in marks)
    source[0] = json.dumps(notebook)


def caption(app, doctree):
    """Put the caption over every cell that is saved to a module."""
    from docutils import nodes

    for cell in doctree.findall(nodes.container):
        for name in [
            c for c in cell.get("classes", []) if c.startswith("tag_exported-")
        ]:
            module = name.removeprefix("tag_exported-")
            cell["classes"].append("exported")
            text = nodes.paragraph(classes=["exported-caption"])
            text += nodes.Text("saved to ")
            text += nodes.literal(text=f"minillm/{module}.py")
            cell.insert(0, text)


def setup(app):
    app.connect("source-read", rewrite)
    app.connect("doctree-read", caption)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
