"""Every page in Chromium, from a plain file server, wide and narrow, light and dark.

A page is visited once; each test then looks at what was found there.
"""

import json
import os
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT, SITE

AXE = ROOT / "book/node_modules/axe-core/axe.min.js"
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
# Findings of axe-core that are allowed: (rule, part of the element) -> reason.
ALLOWED: dict[tuple[str, str], str] = {}
NAMES = sorted(
    path.relative_to(SITE).as_posix()
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts
)
NAMES = [name for name in NAMES if os.environ.get("MINILLM_PAGES", "") in name]
# What a reader can operate in an output.
CONTROLS = (
    ":is(input, select, textarea, [onclick], [role='slider'], button:not(.copybtn))"
)
PICTURE = """view => view.innerHTML + [...view.querySelectorAll("canvas")]
    .map(canvas => canvas.toDataURL()).join() + [...view.querySelectorAll("input")]
    .map(input => getComputedStyle(input).display).join()"""
REACHED = """() => {
  const open = element => element.checkVisibility({visibilityProperty: true});
  const all = "a[href], button, input, select, textarea, summary, [tabindex]";
  return [...document.querySelectorAll(all)].filter(open)
    .filter(e => e.tabIndex < 0 && !e.closest("[tabindex='-1']:not(a, button)"))
    .filter(e => !e.disabled && e.matches("a[href], button, input, select, summary"))
    .map(e => e.outerHTML.slice(0, 120));
}"""
CLICKABLE = """() => [...document.querySelectorAll(".cell_output *")].filter(e => {
  for (let p = e; p; p = p.parentElement)  // a box with arrow keys serves its words
    if (p.tabIndex >= 0 && (p === e || p.onkeydown)) return false;
  return e.onclick;
}).map(e => e.outerHTML.slice(0, 120))"""
WIDE = """() => {
  const root = document.documentElement, width = root.clientWidth;
  if (root.scrollWidth <= width) return [];
  const clipped = e => e && e !== document.body &&
    (getComputedStyle(e).overflowX !== "visible" || clipped(e.parentElement));
  return [...document.querySelectorAll("article *, main *")]
    .filter(e => e.getBoundingClientRect().right > width + 1)
    .filter(e => !clipped(e.parentElement))
    .map(e => e.outerHTML.slice(0, 120)).slice(0, 3).concat(["the page scrolls"]);
}"""
FORMULAS = """() => [...document.querySelectorAll(".math")].filter(e =>
    !e.querySelector("mjx-container") || e.querySelector("mjx-merror"))
    .map(e => e.textContent.slice(0, 80))"""


def new_page(browser):
    page = browser.new_page()
    page.set_viewport_size({"width": 1280, "height": 900})
    return page


def settle(page):
    page.evaluate("() => document.fonts.ready.then(() => true)")
    page.wait_for_function("() => !window.MathJax || window.MathJax.startup?.promise")
    page.evaluate("() => window.MathJax && MathJax.startup.promise.then(() => true)")
    page.wait_for_timeout(150)


def axe(page, theme: str) -> list[str]:
    page.evaluate(
        "theme => { document.documentElement.dataset.mode = theme;"
        "document.documentElement.dataset.theme = theme; }",
        theme,
    )
    page.wait_for_timeout(250)  # colours fade from one theme to the other
    options = {
        "runOnly": {"type": "tag", "values": TAGS},
        "resultTypes": ["violations"],
    }
    result = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{theme}: {rule['id']}: {node['html'][:160]} {node['failureSummary'][-160:]}"
        for rule in result["violations"]
        for node in rule["nodes"]
        if not any(rule["id"] == r and part in node["html"] for r, part in ALLOWED)
    ]


def operate(page) -> tuple[int, list[str]]:
    """Use one control of each interactive view; its picture must change."""
    views, still = page.locator(f".cell_output > .output:has({CONTROLS})"), []
    for i in range(views.count()):
        view = views.nth(i)
        if not view.is_visible():
            continue
        before, kinds = view.evaluate(PICTURE), []
        for control in view.locator(CONTROLS).all()[:6]:
            kinds.append(control.evaluate("e => e.tagName + '.' + (e.type || '')"))
            if not control.is_visible() or control.is_disabled():
                continue
            if "range" in kinds[-1] or "SELECT" in kinds[-1]:
                control.focus()
                page.keyboard.press("ArrowRight")
                page.keyboard.press("ArrowDown")
                page.keyboard.press("End")
            elif "INPUT.text" in kinds[-1] or "TEXTAREA" in kinds[-1]:
                control.fill("A cat sat.")
            else:
                control.focus()
                page.keyboard.press("Enter")
                page.keyboard.press("Space")
            page.wait_for_timeout(80)
            if view.evaluate(PICTURE) != before:
                break
        else:
            still.append(f"no picture changes: view {i}, {kinds}")
    return views.count(), still


@cache
def visit(browser, address: str, name: str) -> dict:
    found = {"console": [], "failed": [], "hosts": []}
    page = new_page(browser)
    page.on(
        "console",
        lambda m: found["console"].append(m.text) if m.type == "error" else None,
    )
    page.on("pageerror", lambda error: found["console"].append(str(error)))
    page.on("requestfailed", lambda request: found["failed"].append(request.url))
    page.on(
        "response",
        lambda r: found["failed"].append(r.url) if r.status >= 400 else None,
    )
    page.on(
        "request",
        lambda r: (
            None
            if r.url.startswith((address, "data:", "blob:"))
            else found["hosts"].append(r.url)
        ),
    )
    page.goto(address + name, wait_until="networkidle")
    settle(page)
    found["formulas"] = page.evaluate(FORMULAS)
    found["number of formulas"] = page.locator("mjx-container").count()
    page.add_script_tag(path=str(AXE))
    found["axe"] = axe(page, "light") + axe(page, "dark")
    found["keyboard"] = page.evaluate(REACHED) + page.evaluate(CLICKABLE)
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(150)
    found["wide"] = page.evaluate(WIDE)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.wait_for_timeout(100)
    found["wide"] += page.evaluate(WIDE)
    found["axe"] += [f"narrow, {fault}" for fault in axe(page, "light")]
    page.set_viewport_size({"width": 1280, "height": 900})
    found["views"], found["still"] = operate(page)
    page.close()
    if folder := os.environ.get("MINILLM_FINDINGS"):
        path = Path(folder, name.replace("/", "_") + ".json")
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def told(lines) -> str:
    return "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_page(browser, address, name):
    found = visit(browser, address, name)
    kinds = "console", "failed", "hosts", "formulas", "axe", "keyboard", "wide", "still"
    faults = [f"{kind}: {line}" for kind in kinds for line in found[kind]]
    assert not faults, told(faults)


def test_the_book_has_formulas_and_interactive_views(browser, address):
    if os.environ.get("MINILLM_PAGES"):
        pytest.skip("only some pages are looked at")
    pages = [visit(browser, address, name) for name in NAMES]
    formulas = sum(page["number of formulas"] for page in pages)
    views = sum(page["views"] for page in pages)
    print(f"\n{len(pages)} pages, {formulas} formulas, {views} interactive views")
    assert formulas > 50 and views >= 3


def test_search_finds_a_word(browser, address):
    page = new_page(browser)
    page.goto(address + "search.html?q=softmax", wait_until="networkidle")
    page.wait_for_selector("#search-results li a")
    page.close()


def test_a_term_shows_its_meaning_when_it_is_reached(browser, address):
    page = new_page(browser)
    page.goto(address + "notebooks/03_attention.html", wait_until="load")
    page.locator("a.term").first.focus()
    page.wait_for_selector(".tippy-content")
    assert len(page.locator(".tippy-content").inner_text()) > 20
    page.keyboard.press("Escape")
    page.wait_for_selector(".tippy-content", state="detached")
    page.close()


def test_code_can_be_copied_by_keyboard(browser, address):
    page = new_page(browser)
    page.goto(address + "notebooks/03_attention.html", wait_until="load")
    button = page.locator("button.copybtn").nth(3)
    button.focus()
    page.wait_for_timeout(800)  # it fades in
    assert float(button.evaluate("e => getComputedStyle(e).opacity")) > 0.9
    page.close()
