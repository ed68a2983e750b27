"""The book's own Sphinx extension; each module here is one thing that it does.

offline    what the pages load lies in book/_static/vendor, not on another server
chapters   numbers in titles; links to the API, to Colab, to the source
cells      captions on exported cells, folds over long ones
api        a page for each module of minillm, and for littleworld, from docstrings
glossary   the first use of a term in a chapter links to the glossary
mend       faults of the theme's pages, put right when all is written
"""

from . import api, cells, chapters, glossary, mend, offline


def setup(app):
    for part in (offline, chapters, cells, api, glossary, mend):
        part.setup(app)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
