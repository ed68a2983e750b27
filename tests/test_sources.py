"""Public sets and web addresses: cached, resumed, and never half a file."""

import gzip
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from functools import partial
from itertools import islice

import pyarrow.parquet
import pytest
from test_formats import TEXTS, write_all

from minillm.support import sources
from minillm.support.formats import read_jsonl, write_jsonl
from minillm.support.sources import fetch_rows, read_texts


def test_a_public_set_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        next(read_texts("nobody/stories"))
    assert "minillm data convert nobody/stories stories.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


class Connection:
    """A stand-in for the hub: rows through `datasets`, breaking where it should."""

    def __init__(self, monkeypatch, folder, count=30):
        self.count, self.breaks_at, self.opened, self.sent = count, None, 0, 0
        monkeypatch.setenv("MINILLM_CACHE", str(folder))
        monkeypatch.setattr(sources, "open_public", self.open)

    def open(self, name):
        from datasets import IterableDataset

        self.opened += 1
        return IterableDataset.from_generator(self.rows)

    def rows(self):
        for index in range(self.count):
            if index == self.breaks_at:
                raise ConnectionError("reset by peer")
            yield {"text": f"text {index}", "index": index}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return Connection(monkeypatch, tmp_path / "cache")


def texts_of(count):
    return [f"text {index}" for index in range(count)]


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_public_set_is_fetched_once(hub, tmp_path):
    assert list(read_texts("owner/set")) == texts_of(30)
    assert names(tmp_path / "cache") == ["owner--set.about", "owner--set.jsonl"]
    assert list(read_texts("owner/set", column="text")) == texts_of(30)
    assert hub.opened == 1
    with pytest.raises(ValueError, match="no column 'story'; .*: text, index"):
        next(read_texts("owner/set", column="story"))


def test_an_interrupted_fetch_resumes_where_it_stopped(hub, tmp_path):
    hub.breaks_at, got = 7, []
    with pytest.raises(ValueError, match=r"interrupted \(ConnectionError\).*run again"):
        for text in read_texts("owner/set"):
            got.append(text)
    assert got == texts_of(7)
    assert names(tmp_path / "cache") == ["owner--set.part", "owner--set.state"]
    hub.breaks_at = None
    assert list(islice(read_texts("owner/set"), 5)) == texts_of(5)
    assert hub.opened == 1  # these were there
    assert list(islice(read_texts("owner/set"), 12)) == texts_of(12)
    assert list(read_texts("owner/set")) == texts_of(30)
    rows = list(read_jsonl(tmp_path / "cache/owner--set.jsonl"))
    assert [row["index"] for row in rows] == list(range(30))


def test_a_row_cut_in_half_is_fetched_again(hub, tmp_path):
    list(islice(read_texts("owner/set"), 9))
    with open(tmp_path / "cache/owner--set.part", "ab") as file:
        file.write(b'{"text": "text 9", "ind')
    assert list(read_texts("owner/set")) == texts_of(30)


def test_a_machine_that_was_switched_off_loses_little(hub, tmp_path, monkeypatch):
    import shutil

    hub.count = 2500
    rows = fetch_rows("owner/set")
    for _ in range(2200):
        next(rows)
    shutil.copytree(tmp_path / "cache", tmp_path / "later")  # as it would be found
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "later"))
    state = json.loads((tmp_path / "later/owner--set.state").read_text())
    assert state["bytes"] > 30_000
    assert list(read_texts("owner/set")) == texts_of(2500)
    rows.close()


def test_a_file_with_another_checksum_is_never_used(hub, tmp_path, capsys):
    list(read_texts("owner/set"))
    path = tmp_path / "cache/owner--set.jsonl"
    whole = path.read_bytes()
    for broken in (whole[:-40], whole.replace(b"text 3", b"text X"), b""):
        path.write_bytes(broken)
        assert list(read_texts("owner/set")) == texts_of(30)
        assert "has changed since it was fetched" in capsys.readouterr().err
    (tmp_path / "cache/owner--set.about").unlink()
    assert list(read_texts("owner/set")) == texts_of(30)
    assert hub.opened == 5


def test_two_at_once_do_not_write_into_one_file(hub):
    first = fetch_rows("owner/set")
    next(first)
    with pytest.raises(ValueError, match="fetched by another process"):
        next(fetch_rows("owner/set"))
    next(fetch_rows("owner/other"))
    assert len(list(first)) == 29
    assert len(list(fetch_rows("owner/set"))) == 30


def test_fetching_is_streamed(hub):
    hub.count = 3000
    rows = fetch_rows("owner/set")
    next(rows)
    tracemalloc.start()
    assert sum(1 for _ in rows) == 2999
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


@pytest.fixture
def online(monkeypatch, tmp_path):
    """As if the setting were not there that keeps all tests from the network."""
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_without_a_network_one_line_says_so_at_once(online, tmp_path, monkeypatch):
    begin = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set.*minillm data con"):
            next(read_texts("owner/set:file.jsonl"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="within reach .*refused.*data") as caught:
        next(read_texts("owner/set:file.jsonl"))
    assert "data convert owner/set:file.jsonl file.jsonl" in str(caught.value)
    assert time.monotonic() - begin < 8 and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["0", "1"])
def test_the_settings_of_the_hub_are_heeded(tmp_path, offline):
    """In a process of its own, as they are read when `huggingface_hub` is imported."""
    code = "from minillm.support.sources import read_texts\nnext(read_texts('a/b'))"
    setting = {"HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"}
    environment = os.environ | setting | {"MINILLM_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = done.stderr.splitlines()[-1]
    assert ("refused", "HF_HUB_OFFLINE is set")[int(offline)] in said
    assert said.endswith("run `minillm data convert a/b b.jsonl`")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["set", "address"])
def test_a_server_that_hangs_is_not_waited_for(online, monkeypatch, kind):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        name = "owner/set" if kind == "set" else f"{address}/x.jsonl"
        begin = time.monotonic()
        with pytest.raises(
            ValueError, match="within reach .*(?i:time).*minillm"
        ) as said:
            next(read_texts(name))
        assert time.monotonic() - begin < 12
        assert str(said.value).startswith(f"{name}: ") and "\n" not in str(said.value)


class Hub(http.server.BaseHTTPRequestHandler):
    """A server that knows no set, as the hub answers for a name that is wrong."""

    def do_GET(self):
        self.send_error(404, "Repository not found")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


def serve(handler):
    """A server in a thread, and its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


def test_a_set_that_the_hub_does_not_know_is_one_line(online, monkeypatch):
    server, address = serve(Hub)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    with pytest.raises(ValueError, match=r"owner/none: no such .*404") as said:
        next(read_texts("owner/none"))
    server.shutdown()
    assert "\n" not in str(said.value)


# ------------------------------------------------------ files at an address


class Files(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; the server hangs up before the last `cut` bytes are sent."""

    cut, header = 0, None

    def copyfile(self, source, output):
        data = source.read()
        output.write(data[: len(data) - self.cut])

    def end_headers(self):
        if self.header:
            self.send_header(*self.header)
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def site(online, tmp_path, monkeypatch):
    """A folder, and the address at which a server on this machine shows it."""
    folder = tmp_path / "site"
    folder.mkdir()
    server, address = serve(partial(Files, directory=str(folder)))
    yield folder, address
    server.shutdown()


def test_every_format_is_read_from_an_address_too(site):
    folder, address = site
    for path in write_all(folder):
        for _ in range(2):  # from the server, then from the cache
            assert list(read_texts(f"{address}/{path.name}")) == TEXTS, path.name
        path.unlink()
        assert list(read_texts(f"{address}/{path.name}")) == TEXTS, path.name


def test_an_address_may_hold_a_blank_and_a_server_may_declare_its_gzip(
    site, monkeypatch
):
    folder, address = site
    write_jsonl([{"text": "one"}], folder / "a b.jsonl.gz")
    monkeypatch.setattr(Files, "header", ("Content-Encoding", "gzip"))
    assert list(read_texts(f"{address}/a b.jsonl.gz")) == ["one"]


def test_what_is_wrong_at_an_address_is_reported_in_one_line(site, monkeypatch):
    folder, address = site
    (folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": "cut')
    for source, reason in {
        f"{address}/bad.jsonl": "bad.jsonl, line 2: not JSON: Unterminated",
        f"{address}/no.jsonl.gz": r"404.*data convert http\S+/no.jsonl.gz no.jsonl`$",
        f"{address}/page.html": r"unknown format '\.html'; known are \.jsonl",
        "http://127.0.0.1:9/x.jsonl": r"within reach .*(Connect|refuse).* x.jsonl`$",
        "s3://bucket/x.jsonl": r"within reach .* x.jsonl`$",
        "http://[/x.jsonl": r"within reach .* x.jsonl`$",
    }.items():
        with pytest.raises(ValueError, match=reason) as caught:
            list(read_texts(source))
        assert "\n" not in str(caught.value) and str(caught.value).startswith(source)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="OFFLINE is set.*data convert https://"):
        list(read_texts("https://example.org/x.txt"))


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.jsonl", "x.parquet"])
def test_a_download_that_breaks_off_is_never_used(site, name, tmp_path, monkeypatch):
    folder, address = site
    texts = [f"text number {index}" for index in range(2000)]
    text = "\n<|endoftext|>\n".join(texts)
    (folder / "x.txt").write_text(text)
    (folder / "x.txt.gz").write_bytes(gzip.compress(text.encode()))
    write_jsonl(({"text": text} for text in texts), folder / "x.jsonl")
    table = pyarrow.Table.from_pylist([{"text": text} for text in texts])
    pyarrow.parquet.write_table(table, folder / "x.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(Files, "cut", 3000)
        with pytest.raises(ValueError, match="cut short: the connection broke") as said:
            list(read_texts(f"{address}/{name}"))
        assert f"{address}/{name}" in str(said.value)
    assert not list((tmp_path / "cache").glob("*.jsonl"))
    assert list(read_texts(f"{address}/{name}")) == texts
