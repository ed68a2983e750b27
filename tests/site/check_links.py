"""Every link of the site, in raw HTML too, goes to a file and an anchor that exist."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from conftest import SITE

LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("object", "data")}
PASSIVE = {"canonical", "alternate", "next", "prev", "index", "search"}


class Page(HTMLParser):
    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.loads, self.images = [], [], [], []
        self.script, self.inline = False, ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        self.loads += [values[k] for t, k in LOADS if t == tag and values.get(k)]
        if tag == "link" and values.get("rel") not in PASSIVE:
            self.loads.append(values["href"])
        if tag == "img":
            self.images.append(values)
        self.script = tag == "script" and "src" not in values

    def handle_data(self, data):
        self.inline += data if self.script else ""


PAGES = {
    path.resolve(): Page(path)
    for path in sorted(SITE.rglob("*.html"))
    if "_static" not in path.parts
}


def faults(found):
    return "\n".join(sorted(set(found)))


def each():
    for path, page in PAGES.items():
        yield path, path.relative_to(SITE.resolve()), page


def test_there_are_pages():
    assert len(PAGES) > 30, f"{SITE} is not built: make book"


def test_every_link_and_anchor_goes_somewhere():
    found = []
    for path, name, page in each():
        for url in page.links + page.loads:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve()
            target = target if parts.path else path
            if not target.exists():
                found.append(f"{name}: no such file: {url}")
            elif parts.fragment and target in PAGES:
                if unquote(parts.fragment) not in PAGES[target].ids:
                    found.append(f"{name}: no such anchor: {url}")
    assert not found, faults(found)


def test_nothing_is_loaded_from_another_host():
    found = []
    for _, name, page in each():
        found += [f"{name}: {url}" for url in page.loads if "//" in url]
        for host in ("cdn.jsdelivr.net", "unpkg.com", "cdnjs.cloudflare.com"):
            found += [f"{name}: a script names {host}"] if host in page.inline else []
    assert not found, faults(found)


def test_every_image_has_a_text_that_says_what_it_shows():
    found = [
        f"{name}: {image.get('src', '')[:60]}: alt {image.get('alt')!r}"
        for _, name, page in each()
        for image in page.images
        if len(image.get("alt", "")) < 4 or image["alt"].endswith((".png", ".svg"))
    ]
    assert not found, faults(found)


def test_no_id_occurs_twice():
    found = [
        f"{name}: {one}"
        for _, name, page in each()
        for one in page.ids
        if page.ids.count(one) > 1
    ]
    assert not found, faults(found)


def test_chapters_and_api_link_to_each_other():
    for path, name, page in each():
        if name.parts[0] == "notebooks":
            for url in [url for url in page.links if "book/api/" in url]:
                api = (path.parent / urlsplit(url).path).resolve()
                back = f"../../notebooks/{name.name}"
                assert any(link.startswith(back) for link in PAGES[api].links), url


def test_exported_cells_say_where_they_are_saved():
    text = (SITE / "notebooks/03_attention.html").read_text(encoding="utf-8")
    assert 'id="def-attend"' in text and "saved to" in text
    assert "#minillm.attention.attend" in text and "#| export" not in text
    notebook = (SITE / "_sources/notebooks/03_attention.ipynb").read_text()
    assert "#| export" in notebook


def test_chapters_carry_their_number():
    text = (SITE / "notebooks/03_attention.html").read_text(encoding="utf-8")
    assert "<title>3 Attention" in text and "4 MLP" in text
