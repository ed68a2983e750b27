"""The book on paper and on an e-reader: minillm.pdf and minillm.epub in book/_build.

    python tools/print.py pdf epub      from the pages that `make book` has built

Both are put together from the pages of the site, as stored: folded solutions stand
open, code that only draws a figure is left out, and a view that needs a browser becomes
the picture of how it opens. Chromium draws the formulas, the pictures and the PDF.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import time
import uuid
import zipfile
from html import escape
from pathlib import Path
from urllib.parse import unquote, urldefrag
from xml.etree import ElementTree

import yaml
from bs4 import BeautifulSoup, Tag
from playwright.sync_api import Error, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "book/_build/html"
PICTURES = ROOT / "book/_build/print"
STYLE = ROOT / "book/print.css"
TITLE = "minillm: a language model from scratch"
LEFT_OUT = ".headerlink, .page-links, button, script"
COLORED = {"c1", "k", "kn", "kc", "ow", "s1", "s2", "sa", "sd", "si"}
MATHJAX = "_static/vendor/mathjax/tex-mml-chtml.js"


def cited() -> dict:
    """What CITATION.cff says: version and date of this edition."""
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def pages() -> list[tuple[str, str]]:
    """(part, page) in reading order; the pages of the API are for a screen."""
    toc = yaml.safe_load((ROOT / "book/_toc.yml").read_text(encoding="utf-8"))
    found = [("", toc["root"])]
    for part in toc["parts"]:
        names = [c["file"] for c in part["chapters"] if "sections" not in c]
        found += [(part["caption"] * (i == 0), name) for i, name in enumerate(names)]
    return found


def read(name: str) -> Tag:
    """The text of a page of the site."""
    path = SITE / f"{name}.html"
    if not path.exists():
        sys.exit(f"{path.relative_to(ROOT)} is not there: run `make book` first")
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return soup.select_one("article.bd-article") or soup.select_one("article")


def new(name: str, text: str = "", **attributes: str) -> Tag:
    tag = BeautifulSoup("", "html.parser").new_tag(name, attrs=attributes)
    tag.string = text
    return tag


# What a page becomes on paper


def unfold(article: Tag) -> None:
    """Open what is folded: hints and solutions stay, code that only draws goes."""
    for cell in article.select(".tag_hide-input:not(.exported)"):
        for details in cell.select("details"):
            details.decompose()
    for details in article.select("details"):
        summary = details.find("summary")
        text = summary.get_text(" ", strip=True) if summary else ""
        solution = details.find_parent(class_="tag_hide-cell")
        if summary:
            summary.decompose()
        label = "Solution" if solution else text
        if "hide" in details.get("class", []) and not solution:
            label = ""
        if label:
            details.insert(0, new("p", label, **{"class": "folded"}))
        details.name = "div"
        details["class"] = "unfolded"


def bleach(article: Tag) -> None:
    """Color only comments, texts and keywords: each span makes the file larger."""
    for span in article.select(".highlight span"):
        if not set(span.get("class", [])) & COLORED:
            span.unwrap()


def clean(name: str) -> Tag:
    """A page without what only works on a screen."""
    article = read(name)
    for number, view in enumerate(views(article), 1):
        picture = PICTURES / f"{Path(name).name}-{number}.png"
        alt = "the interactive view of this page, as it opens"
        said = "The view as it opens; on the site it can be used."
        view.insert_after(new("p", said, **{"class": "said"}))
        view.replace_with(
            new("img", src=picture.as_uri(), alt=alt, **{"class": "view"})
        )
    for tag in article.select(LEFT_OUT):
        tag.decompose()
    for drawn in article.select("svg.course-map"):
        source = (ROOT / "book/figures/course_map.svg").as_uri()
        drawn.replace_with(new("img", src=source, alt="Map of the course"))
    unfold(article)
    bleach(article)
    for image in article.select("img[src]"):
        if not image["src"].startswith("file:"):
            image["src"] = ((SITE / name).parent / image["src"]).resolve().as_uri()
    return article


def views(article: Tag) -> list[Tag]:
    """Outputs that a script of their own draws."""
    return [out for out in article.select(".output.text_html") if out.find("script")]


def take_pictures(page: Page, names: list[str]) -> None:
    """Photograph every interactive view as it opens."""
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    for name in names:
        if not (found := views(read(name))):
            continue
        page.goto((SITE / f"{name}.html").as_uri())
        page.wait_for_timeout(500)
        shown = page.locator(".output.text_html:has(script)")
        for number in range(len(found)):
            picture = PICTURES / f"{Path(name).name}-{number + 1}.png"
            shown.nth(number).screenshot(path=picture, scale="device")


def send_links(article: Tag, name: str, known: dict[str, str], own: str = "{}") -> None:
    """Links between pages lead to places of the book; `known`: page -> its address."""
    for link in article.select("a[href]"):
        address, anchor = urldefrag(link["href"])
        if re.match(r"[a-z]+:", address):
            continue
        target = (SITE / name).parent / address if address else SITE / f"{name}.html"
        stem = str(target.resolve().relative_to(SITE)).removesuffix(".html")
        if stem in known:
            link["href"] = known[stem].format(anchor)
        else:  # the API, a download: on the site only
            link.name = "span"
            del link["href"]


# PDF: one long page


def on_paper(names: list[tuple[str, str]]) -> str:
    """All pages as one, with ids that say which page they are of."""
    known = {name: f"#{Path(name).name}--{{}}" for _, name in names}
    body, contents = [], []
    for part, name in names:
        article, prefix = clean(name), f"{Path(name).name}--"
        send_links(article, name, known)
        for tag in article.select("[id]"):
            tag["id"] = prefix + tag["id"]
        title = article.find("h1").get_text(strip=True)
        if part:
            contents.append(f"<li class='part'>{escape(part)}</li>")
        contents.append(f"<li><a href='#{prefix}'>{escape(title)}</a></li>")
        body.append(f"<section class='page' id='{prefix}'>{article}</section>")
    pygments = (SITE / "_static/pygments.css").read_text(encoding="utf-8")
    config = '{"options": {"processHtmlClass": "math"}, "startup": {"typeset": true}}'
    about = cited()
    return f"""<!doctype html><html lang="en" data-theme="light"><head>
<meta charset="utf-8"><title>{TITLE}</title>
<style>{pygments}</style><style>{STYLE.read_text(encoding="utf-8")}</style>
<script>window.MathJax = {config}</script>
<script defer src="{(SITE / MATHJAX).as_uri()}"></script></head><body>
<section class="cover"><h1>minillm</h1><p>A language model from scratch</p>
<p class="small">Version {about["version"]}. Text and figures CC BY 4.0, code Apache
2.0.</p></section>
<nav class="contents"><h2>Contents</h2><ul>{"".join(contents)}</ul></nav>
{"".join(body)}</body></html>"""


def write_pdf(page: Page, names: list[tuple[str, str]], path: Path) -> None:
    source = PICTURES / "book.html"
    source.write_text(on_paper(names), encoding="utf-8")
    page.goto(source.as_uri(), timeout=300_000)
    page.wait_for_function("() => Boolean(MathJax.startup)", timeout=60_000)
    page.evaluate("() => MathJax.startup.promise.then(() => true)")
    page.evaluate("() => document.fonts.ready.then(() => true)")
    number = "<span class='pageNumber'></span>"
    page.pdf(
        path=path, format="A4", print_background=True, outline=True, tagged=True,
        display_header_footer=True, header_template="<span></span>",
        footer_template=f"<p style='font-size:8px;margin:0 auto'>{number}</p>",
        margin=dict(top="18mm", bottom="20mm", left="18mm", right="18mm"),
    )  # fmt: skip


# EPUB: a page each


def formulas(page: Page, articles: dict[str, Tag]) -> None:
    """Write every formula in MathML, which e-readers read without a script."""
    spans = [span for article in articles.values() for span in article.select(".math")]
    texts = [span.get_text().strip() for span in spans]
    blank = PICTURES / "blank.html"
    blank.write_text(f"<script src='{(SITE / MATHJAX).as_uri()}'></script>")
    page.goto(blank.as_uri())
    page.wait_for_function("() => Boolean(MathJax.tex2mml)", timeout=60_000)
    plain = [re.sub(r"^\\[(\[]|\\[)\]]$", "", text) for text in texts]
    display = [span.name == "div" for span in spans]
    made = page.evaluate(
        "([texts, display]) => texts.map((text, i) => "
        "MathJax.tex2mml(text, {display: display[i]}))",
        [plain, display],
    )
    for span, text, mathml in zip(spans, plain, made, strict=True):
        math = BeautifulSoup(mathml, "html.parser").math
        math["alttext"] = text
        span.clear()
        span.append(math)


def as_xhtml(title: str, body: str) -> str:
    """A page that a parser of XML reads."""
    text = f"""<?xml version="1.0" encoding="utf-8"?>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops"
 lang="en" data-theme="light"><head><title>{escape(title)}</title>
<link rel="stylesheet" type="text/css" href="style.css"/></head>
<body>{body}</body></html>"""
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "\N{REPLACEMENT CHARACTER}", text)
    ElementTree.fromstring(text.encode("utf-8"))
    return text


def pack_images(article: Tag, images: dict[str, Path]) -> None:
    """Images get a name inside the book, the same for the same picture."""
    for image in article.select("img[src]"):
        path = Path(unquote(image["src"].removeprefix("file://")))
        name = hashlib.sha256(path.read_bytes()).hexdigest()[:16] + path.suffix
        images[name], image["src"] = path, f"images/{name}"


def nav(entries: list[tuple[str, str, str]]) -> str:
    items = "".join(
        (f"<li><span>{escape(part)}</span></li>" if part else "")
        + f'<li><a href="{file}">{escape(title)}</a></li>'
        for part, file, title in entries
    )
    return f'<nav epub:type="toc"><h1>Contents</h1><ol>{items}</ol></nav>'


def package(files: list[str], with_math: set[str], images: dict[str, Path]) -> str:
    """The list of all files, and the order in which they are read."""
    about, kinds = cited(), {".png": "image/png", ".svg": "image/svg+xml"}
    marks = {name: ' properties="mathml"' for name in with_math}
    items = [
        f'<item id="p{i}" href="{name}" media-type="application/xhtml+xml"'
        f"{marks.get(name, '')}/>"
        for i, name in enumerate(files)
    ]
    items += [
        f'<item id="i{i}" href="images/{name}" media-type="{kinds[name[-4:]]}"/>'
        for i, name in enumerate(images)
    ]
    spine = "".join(f'<itemref idref="p{i}"/>' for i in range(len(files)))
    identifier = uuid.uuid5(uuid.NAMESPACE_URL, f"minillm {about['version']}")
    return f"""<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0" unique-identifier="id">
<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
<dc:identifier id="id">urn:uuid:{identifier}</dc:identifier><dc:title>{TITLE}</dc:title>
<dc:language>en</dc:language><dc:creator>The minillm developers</dc:creator>
<dc:rights>CC BY 4.0 (text and figures), Apache 2.0 (code)</dc:rights>
<meta property="dcterms:modified">{about["date-released"]}T00:00:00Z</meta></metadata>
<manifest><item id="nav" href="nav.xhtml" media-type="application/xhtml+xml"
 properties="nav"/><item id="css" href="style.css" media-type="text/css"/>
{"".join(items)}</manifest><spine>{spine}</spine></package>"""


CONTAINER = """<?xml version="1.0"?>
<container version="1.0" xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="book/content.opf"
 media-type="application/oebps-package+xml"/></rootfiles></container>"""


def write_epub(page: Page, names: list[tuple[str, str]], path: Path) -> None:
    known = {name: f"{Path(name).name}.xhtml#{{}}" for _, name in names}
    articles = {name: clean(name) for _, name in names}
    formulas(page, articles)
    texts, entries, images, with_math = {}, [], {}, set()
    for part, name in names:
        article, file = articles[name], f"{Path(name).name}.xhtml"
        send_links(article, name, known)
        for link in article.select("a[href$='#']"):
            link["href"] = link["href"][:-1]
        pack_images(article, images)
        title = article.find("h1").get_text(strip=True)
        with_math |= {file} if article.find("math") else set()
        texts[file] = as_xhtml(title, str(article))
        entries.append((part, file, title))
    files = {
        "META-INF/container.xml": CONTAINER,
        "book/content.opf": package(list(texts), with_math, images),
        "book/nav.xhtml": as_xhtml("Contents", nav(entries)),
        "book/style.css": STYLE.read_text(encoding="utf-8"),
        **{f"book/{name}": text for name, text in texts.items()},
    }
    write_zip(path, files, images)


def write_zip(path: Path, files: dict[str, str], images: dict[str, Path]) -> None:
    """The same files give the same bytes: no time of day is stored."""
    with zipfile.ZipFile(path, "w") as book:
        book.writestr(zipfile.ZipInfo("mimetype"), "application/epub+zip")
        contents = {name: text.encode() for name, text in files.items()}
        contents |= {f"book/images/{n}": p.read_bytes() for n, p in images.items()}
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            book.writestr(entry, content)


def missing_letters() -> str:
    """Chapter 02 shows Chinese; where no font has it, the PDF shows boxes."""
    if (
        shutil.which("fc-list")
        and not subprocess.run(["fc-list", ":lang=zh"], capture_output=True).stdout
    ):
        return "no font here has Chinese letters (Debian: apt install fonts-noto-cjk)"
    return ""


def main() -> int:
    kinds = sys.argv[1:] or ["pdf", "epub"]
    names, start = pages(), time.time()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    try:
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=program)
            size = {"width": 760, "height": 1000}
            page = browser.new_page(viewport=size, device_scale_factor=2)
            take_pictures(page, [name for _, name in names])
            for kind in kinds:
                path = ROOT / f"book/_build/minillm.{kind}"
                {"pdf": write_pdf, "epub": write_epub}[kind](page, names, path)
                seconds, size_mb = time.time() - start, path.stat().st_size / 1e6
                print(f"{path.relative_to(ROOT)}: {size_mb:.1f} MB, {seconds:.0f} s")
            browser.close()
    except Error as error:
        sys.exit(f"Chromium could not be used: {str(error).splitlines()[0]}")
    if "pdf" in kinds and (warning := missing_letters()):
        print(warning, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
