"""The one repository setting: with it the links go to the right files."""

import subprocess
import sys

import pytest
import yaml

from conftest import ROOT, SITE

sys.path.insert(0, str(ROOT / "tools"))
import book  # noqa: E402

URL = "https://github.com/someone/minillm"
PAGE = "notebooks/03_attention.html"
LINKS = [
    "https://colab.research.google.com/github/someone/minillm/blob/trunk/notebooks/"
    "03_attention.ipynb",
    f"{URL}/edit/trunk/notebooks/text/03_attention.md",
]


def configure(folder, url: str):
    config = yaml.safe_load((ROOT / "book/_config.yml").read_text(encoding="utf-8"))
    config["repository"] = {"url": url, "branch": "trunk"}
    extensions = config["sphinx"]["local_extensions"]
    extensions.update({name: f"{ROOT}/book/_ext/" for name in extensions})
    path = folder / "_config.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_links_go_to_the_right_files(tmp_path):
    config = configure(tmp_path, URL)
    assert book.build(tmp_path, config=config) == 0
    text = (tmp_path / "_build/html" / PAGE).read_text(encoding="utf-8")
    assert [link for link in LINKS if f'href="{link}"' not in text] == []
    assert (ROOT / "notebooks/text/03_attention.md").exists()
    page = (tmp_path / "_build/html/book/notation.html").read_text(encoding="utf-8")
    assert f'href="{URL}/edit/trunk/book/notation.md"' in page


@pytest.mark.skipif(
    bool(yaml.safe_load((ROOT / "book/_config.yml").read_text())["repository"]["url"]),
    reason="this copy has a repository",
)
def test_without_it_they_are_left_out():
    text = (SITE / PAGE).read_text(encoding="utf-8")
    assert "Download notebook" in text
    assert "colab.research" not in text and "Suggest an edit" not in text


def test_another_kind_of_address_is_an_error_that_says_so(tmp_path):
    config = configure(tmp_path, "https://example.org/minillm")
    command = book.command(tmp_path, config)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "must be empty or" in done.stdout + done.stderr
