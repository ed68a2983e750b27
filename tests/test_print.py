"""PDF and EPUB: what a page of the site becomes, on a site of two small pages."""

import importlib.util
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("bs4")
pytest.importorskip("playwright")
ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("printing", ROOT / "tools/print.py")
printing = importlib.util.module_from_spec(spec)
spec.loader.exec_module(printing)

FRONT = """<article class="bd-article"><h1>Front<a class="headerlink">#</a></h1>
<svg class="course-map"></svg><a href="../notebooks/01_one.html#there">one</a>
<a href="api/data.html">API</a></article>"""
ONE = """<article class="bd-article"><h1>1 One</h1><p id="there">Here.</p>
<div class="cell tag_hide-input"><details class="hide"><summary>Show</summary>
plot()</details><img src="../p.png" alt="a curve"></div>
<div class="cell tag_hide-cell"><details class="hide"><summary>Show the
solution</summary>answer = 42</details></div>
<details><summary>Hint</summary>Think.</details>
<div class="highlight"><span class="k">for</span><span class="n">x</span></div>
<script>alert(1)</script><p>A sign: \x08</p></article>"""
NAMES = [("", "book/index"), ("Text", "notebooks/01_one")]


@pytest.fixture
def site(tmp_path, monkeypatch):
    for name, text in (("book/index", FRONT), ("notebooks/01_one", ONE)):
        path = tmp_path / f"{name}.html"
        path.parent.mkdir()
        path.write_text(text, encoding="utf-8")
    (tmp_path / "p.png").write_bytes(b"a picture")
    monkeypatch.setattr(printing, "SITE", tmp_path)
    return tmp_path


def test_what_is_folded_stands_open_and_code_that_draws_is_left_out(site):
    text = printing.clean("notebooks/01_one").get_text()
    assert "plot()" not in text and "alert" not in text
    assert "answer = 42" in text and "Solution" in text
    assert "Hint" in text and "Think." in text


def test_names_lose_their_color_and_keywords_keep_it(site):
    page = printing.clean("notebooks/01_one")
    assert page.select_one("span.k") and not page.select_one("span.n")


def test_an_epub_is_whole(site, monkeypatch):
    monkeypatch.setattr(printing, "formulas", lambda page, articles: None)
    for path in (site / "a.epub", site / "b.epub"):
        printing.write_epub(None, NAMES, path)
    assert (site / "a.epub").read_bytes() == (site / "b.epub").read_bytes()
    with zipfile.ZipFile(site / "a.epub") as book:
        names = book.namelist()
        assert names[0] == "mimetype"
        assert book.getinfo("mimetype").compress_type == zipfile.ZIP_STORED
        package = ElementTree.fromstring(book.read("book/content.opf"))
        front = book.read("book/index.xhtml").decode()
    items = package.findall(".//{http://www.idpf.org/2007/opf}item")
    assert {f"book/{item.get('href')}" for item in items} <= set(names)
    assert 'href="01_one.xhtml#there"' in front  # to its place in the book
    assert "API" in front and "api/data" not in front  # on the site only


def test_all_pages_of_the_book_are_printed_but_those_of_the_api():
    names = [name for _, name in printing.pages()]
    assert names[0] == "book/index" and len(names) == len(set(names)) > 20
    assert not any("api" in name for name in names)
