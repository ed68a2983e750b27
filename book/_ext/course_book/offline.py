"""Scripts and fonts from the site itself; nothing that is not used.

`tools/book.py` fills book/_static/vendor. Where it could not, the book falls back to
what Sphinx does by itself: formulas and widgets from cdn.jsdelivr.net, no previews.
"""

from pathlib import Path

VENDOR = Path(__file__).resolve().parents[2] / "_static/vendor"
PREVIEWS = {
    "tippy_js": ("vendor/tippy/tippy.js",),
    "tippy_enable_wikitips": False,  # they and the next would ask other hosts
    "tippy_enable_doitips": False,
    "tippy_anchor_parent_selector": "article.bd-article",
    "tippy_skip_anchor_classes": ("headerlink", "sd-stretched-link", "no-preview"),
    "tippy_tip_selector": "figure, table, aside, div.admonition, div.citation",
    "tippy_props": {"placement": "auto", "maxWidth": 480, "interactive": True},
}


def drop_thebe(app):
    """Jupyter Book 1 loads Thebe, unused here; its script fails on every page."""
    for listeners in app.events.listeners.values():
        listeners[:] = [
            listener
            for listener in listeners
            if not listener.handler.__module__.startswith("sphinx_thebe")
        ]
    css = app.registry.css_files
    css[:] = [entry for entry in css if entry[0] != "sphinx-thebe.css"]


def use_vendor(app, config):
    config.mathjax_path = "vendor/mathjax/tex-mml-chtml.js"
    config.nb_ipywidgets_js = {
        "vendor/widgets/require.js": {},
        "widgets.js": {},
        "vendor/widgets/embed-amd.js": {"data-jupyter-widgets-cdn": "/no-cdn/"},
    }
    for name, value in PREVIEWS.items():
        config[name] = value


def setup(app):
    drop_thebe(app)
    if (VENDOR / "made-from").exists():
        app.setup_extension("sphinx_tippy")
        app.add_css_file("vendor/tippy/tippy.css")
        app.add_js_file("previews.js", loading_method="defer")
        app.connect("config-inited", use_vendor)
