"""Chapter 01: reading, writing and measuring text."""

import csv
import gzip
import json
import math
import time
import tracemalloc
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import data
from minillm.data import (
    NearDuplicates,
    bits_per_byte,
    compress,
    deduplicate,
    diversity,
    entropy,
    fetch_rows,
    held_out,
    read_jsonl,
    read_rows,
    read_texts,
    sample_texts,
    summarize,
    write_atomic,
    write_jsonl,
)

TEXTS = ["The red kite flew.", 'A "quoted",\nbroken line.', "小鸟飞了。", "e\u0301 🐦"]


def write_all(folder, texts=TEXTS):
    """The same texts in every format that is read."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": text, "kind": "story"} for text in texts]
    write_jsonl(rows, folder / "a.jsonl")
    write_jsonl(rows, folder / "b.jsonl.gz")
    (folder / "c.json").write_text(json.dumps(rows), encoding="utf-8")
    with open(folder / "d.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "kind"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "e.parquet")
    joined = "\n<|endoftext|>\n".join(texts)
    (folder / "f.txt").write_text(joined, encoding="utf-8", newline="")
    (folder / "g.txt.gz").write_bytes(gzip.compress(joined.encode()))
    return sorted(folder.iterdir())


def test_every_format_gives_the_same_texts(tmp_path):
    files = write_all(tmp_path)
    assert len(files) == 7
    for path in files:
        assert list(read_texts(path)) == TEXTS, path.name


def test_a_folder_is_all_its_files_in_order_of_their_names(tmp_path):
    write_all(tmp_path)
    (tmp_path / "notes.pdf").write_bytes(b"\xff not data")
    (tmp_path / ".hidden.txt").write_text("no")
    assert list(read_texts(tmp_path)) == TEXTS * 7


def test_rows_are_what_datasets_reads(tmp_path):
    from datasets import load_dataset

    write_all(tmp_path)
    path = str(tmp_path / "a.jsonl")
    cache = str(tmp_path / "cache")
    rows = load_dataset("json", data_files=path, split="train", cache_dir=cache)
    assert list(rows) == list(read_jsonl(path))


BAD_LINES = {
    b'{"text": "cut': "not JSON: Unterminated string starting at column 10",
    b'["a list"]': "type list, where an object",
    b'{"text": "\xff"}': 'byte 0xff after \'{"text": "\' is not UTF-8',
    b'{"story": "x"}': "no column 'text'; the columns are: story",
    b'{"text": 3}': "column 'text' holds type int",
    b'{"text": null}': "column 'text' holds type NoneType",
    b"NaN": "type float, where an object",
    b"[" * 100_000: "nested too deeply",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:12].decode("latin1"))
def test_a_bad_line_names_file_line_and_reason(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "last"}\n')
    with pytest.raises(ValueError) as caught:
        list(read_texts(path))
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert BAD_LINES[line] in str(caught.value)


def test_skipped_lines_are_counted_and_the_first_is_told(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "good"}', *BAD_LINES, b'{"text": "end"}']))
    assert list(read_texts(path, skip=True)) == ["good", "end"]
    told = capsys.readouterr().err
    assert f"{path}: kept 2; skipped {len(BAD_LINES)}, the first: " in told
    assert "line 2: not JSON" in told


def test_nothing_good_is_an_error_even_with_skip(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="holds nothing to read; skipped 2"):
        list(read_texts(path, skip=True))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.txt", "x.txt.gz"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(ValueError, match="holds nothing to read"):
        list(read_texts(path))


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    mark = b"\xef\xbb\xbf"
    (tmp_path / "a.jsonl").write_bytes(mark + b'{"text": "one"}\r\n{"text": "two"}\r\n')
    (tmp_path / "b.csv").write_bytes(mark + b"text,kind\r\none,x\r\ntwo,y\r\n")
    text = mark + b"one\r\n<|endoftext|>\r\ntwo\r\nlines\r\n"
    (tmp_path / "c.txt").write_bytes(text)
    assert list(read_texts(tmp_path)) == [
        "one",
        "two",
        "one",
        "two",
        "one",
        "two\nlines",
    ]


def test_a_damaged_csv_row_names_its_line(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,kind\nfine,a\nbad \xff,b\n")
    with pytest.raises(ValueError, match=r"x.csv, line 3: byte 0xff after 'bad '"):
        list(read_texts(path))
    path.write_bytes(b"text,kind\nfine,a\none,two,three\n")
    with pytest.raises(ValueError, match="line 3: 1 more cells than columns"):
        list(read_texts(path))


def test_cut_files_are_never_used(tmp_path):
    files = {path.name: path for path in write_all(tmp_path)}
    for name, reason in {
        "b.jsonl.gz": "damaged or cut short",
        "g.txt.gz": "damaged or cut short",
        "e.parquet": "not a whole Parquet file",
        "c.json": "not JSON",
    }.items():
        path = files[name]
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=reason) as caught:
            list(read_texts(path))
        assert str(path) in str(caught.value)


def test_an_unknown_column_lists_those_that_there_are(tmp_path):
    for path in write_all(tmp_path)[:5]:
        with pytest.raises(ValueError, match="no column 'story'.*: text, kind"):
            list(read_texts(path, column="story"))
        assert set(read_texts(path, column="kind")) == {"story"}


def test_unknown_formats_and_missing_files(tmp_path):
    (tmp_path / "x.docx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"unknown format '\.docx'; known are \.jsonl"):
        list(read_texts(tmp_path / "x.docx"))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(read_texts(tmp_path / "missing.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no file ending in"):
        list(read_texts(tmp_path / "empty"))


def test_a_public_set_out_of_reach_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        next(read_texts("nobody/stories"))
    assert "minillm data convert nobody/stories stories.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_text_without_marks_comes_in_pieces(tmp_path):
    path = tmp_path / "long.txt"
    path.write_text("".join(f"line {number}\n" for number in range(300_000)))
    texts = list(read_texts(path))
    assert len(texts) > 2
    assert "\n".join(texts) + "\n" == path.read_text()


def test_one_line_of_ten_megabytes(tmp_path):
    path = tmp_path / "long.jsonl"
    write_jsonl([{"text": "ab " * 3_500_000}], path)
    assert [len(text) for text in read_texts(path)] == [10_500_000]


def test_reading_is_streamed(tmp_path):
    path = tmp_path / "many.jsonl"
    write_jsonl(({"text": "x" * 1000} for _ in range(20_000)), path)
    tracemalloc.start()
    assert sum(1 for _ in read_texts(path)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 20e6 and peak < 1e6


@settings(max_examples=30)
@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers()), min_size=1))
def test_jsonl_round_trip(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl.gz"
    assert write_jsonl(rows, path) == len(rows)
    assert list(read_jsonl(path)) == rows


def test_a_second_run_does_not_double_the_data(tmp_path):
    path = tmp_path / "x.jsonl"
    for _ in range(2):
        assert write_jsonl([{"text": "one"}, {"text": "two"}], path) == 2
    assert len(list(read_jsonl(path))) == 2


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl([{"text": "earlier"}], path)

    def rows():
        yield {"text": "later"}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(rows(), path)
    with pytest.raises(TypeError):
        write_jsonl([{"text": object()}], path)
    assert list(read_texts(path)) == ["earlier"]
    assert [item.name for item in tmp_path.iterdir()] == ["x.jsonl"]


def fill(folder, word):
    folder.mkdir()
    (folder / "inside.txt").write_text(word)


def test_folders_are_replaced_whole(tmp_path):
    target = tmp_path / "deep" / "folder"
    for word in ("first", "second"):
        with write_atomic(target) as temporary:
            fill(temporary, word)
        assert (target / "inside.txt").read_text() == word
    with pytest.raises(RuntimeError), write_atomic(target) as temporary:
        fill(temporary, "third")
        raise RuntimeError
    assert (target / "inside.txt").read_text() == "second"
    assert [item.name for item in target.parent.iterdir()] == ["folder"]


def test_a_folder_survives_a_write_that_makes_nothing(tmp_path):
    target = tmp_path / "folder"
    fill(target, "first")
    with pytest.raises(FileNotFoundError), write_atomic(target):
        pass
    assert (target / "inside.txt").read_text() == "first"


def test_the_temporary_name_keeps_the_ending(tmp_path):
    with write_atomic(tmp_path / "x.npy") as temporary:
        assert temporary.suffix == ".npy" and temporary.parent == tmp_path
        temporary.write_bytes(b"1")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        write_jsonl([{"text": "x"}], tmp_path / "file" / "x.jsonl")


def test_bits_per_byte():
    assert bits_per_byte(math.log(2) * 16, 8) == pytest.approx(2)
    with pytest.raises(ValueError, match="num_bytes=0"):
        bits_per_byte(1.0, 0)


def test_entropy_of_coins_and_dice():
    assert entropy([1, 1]) == 1
    assert entropy([5, 0]) == 0
    assert entropy([1] * 8) == pytest.approx(3)
    assert entropy([3, 1]) == pytest.approx(0.8112781)


@given(st.lists(st.integers(1, 1000), min_size=1))
def test_entropy_lies_between_zero_and_uniform(counts):
    assert -1e-9 <= entropy(counts) <= math.log2(len(counts)) + 1e-9


def test_compressors_agree_on_what_is_simple():
    rates = compress(["ab" * 5000])
    assert rates["order-0"] == pytest.approx(1, abs=1e-6)
    assert rates["bigram"] == pytest.approx(0, abs=1e-3)
    assert all(rates[name] < 0.1 for name in ("zlib", "bz2", "xz"))
    with pytest.raises(ValueError, match="no text"):
        compress([])


def test_the_split_keeps_repeats_on_one_side():
    texts = [f"story {number % 1000}" for number in range(3000)]
    held = {text for text in texts if held_out(text, share=0.1)}
    assert not held & {text for text in texts if not held_out(text, share=0.1)}
    assert 70 < len(held) < 130
    assert held_out("story 1", share=0.5) == held_out("story 1", share=0.5)


def test_a_sample_is_everything_or_a_share_with_all_copies(monkeypatch):
    texts = [f"story number {number % 5000}" for number in range(10_000)]
    assert sample_texts(texts) == (texts, 10_000, sum(map(len, texts)))
    monkeypatch.setattr(data, "SAMPLE", 20_000)
    kept, count, size = sample_texts(texts)
    assert (count, size) == (10_000, sum(map(len, texts)))
    assert 400 < len(kept) and sum(map(len, kept)) <= 20_000
    assert summarize(kept)["duplicates"] * 2 == len(kept)  # every text stands twice
    kept, count, _ = sample_texts(["the same again"] * 10_000)
    assert count == 10_000 and summarize(kept)["duplicates"] == len(kept) - 1 > 500
    assert sample_texts(["x" * 30_000] * 3)[0] == ["x" * 30_000]


def test_a_sample_of_a_large_corpus_leaves_the_memory_flat(monkeypatch):
    monkeypatch.setattr(data, "SAMPLE", 1_000_000)
    texts = (f"{number} {'x' * 10_000}" for number in range(10_000))  # 100 MB
    (kept, count, size), peak = peak_of(lambda: sample_texts(texts))
    assert count == 10_000 and size > 100e6 and 40 < len(kept) < 101 and peak < 3e6


def test_deduplicate_keeps_the_first():
    assert list(deduplicate(["b", "a", "b", "c", "a"])) == ["b", "a", "c"]


def test_summary():
    counts = summarize(["a b", "a b", "小鸟 c"])
    assert counts["documents"] == 3 and counts["duplicates"] == 1
    assert counts["distinct_words"] == 4 and counts["longest"] == 8
    assert counts["han_share"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no documents"):
        summarize([])


def test_rows_keep_their_other_columns(tmp_path):
    for path in write_all(tmp_path)[:5]:
        assert [row["kind"] for row in read_rows(path)] == ["story"] * 4


# ------------------------------------------------------ sets that are fetched


class Connection:
    """A stand-in for the hub: rows through `datasets`, breaking where it is told to."""

    def __init__(self, monkeypatch, folder, count=30):
        self.count, self.breaks_at, self.opened, self.sent = count, None, 0, 0
        monkeypatch.setenv("MINILLM_CACHE", str(folder))
        monkeypatch.setattr(data, "open_public", self.open)

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


def test_an_interrupted_fetch_goes_on_where_it_stopped(hub, tmp_path):
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
        assert "is not as it was fetched" in capsys.readouterr().err
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


def test_without_a_network_one_line_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set.*minillm data convert"):
        next(read_texts("owner/set:file.jsonl"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="within reach .*refused.*data") as caught:
        next(read_texts("owner/set:file.jsonl"))
    assert "data convert owner/set:file.jsonl file.jsonl" in str(caught.value)
    assert time.monotonic() - begin < 8 and "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    import socket

    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        begin = time.monotonic()
        with pytest.raises(ValueError, match="within reach .*timed out.*minillm data"):
            next(read_texts("owner/set"))
        assert time.monotonic() - begin < 12


# ------------------------------------------------------ files at an address


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, and the address at which a server on this machine shows it."""
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Handler(SimpleHTTPRequestHandler):
        def copyfile(self, source, output):
            data = source.read()
            output.write(data[: len(data) - cut["bytes"]])  # and then it hangs up

        def log_message(self, *_):
            pass

    folder, cut = tmp_path / "site", {"bytes": 0}
    folder.mkdir()
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    handler = partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}", cut
        server.shutdown()


def test_every_format_is_read_from_an_address_too(site):
    folder, address, _ = site
    for path in write_all(folder):
        for _ in range(2):  # from the server, then from the cache
            assert list(read_texts(f"{address}/{path.name}")) == TEXTS, path.name
        path.unlink()
        assert list(read_texts(f"{address}/{path.name}")) == TEXTS, path.name


def test_what_is_wrong_at_an_address_is_told_in_one_line(site, monkeypatch):
    folder, address, _ = site
    (folder / "bad.jsonl").write_text('{"text": "good"}\n{"text": "cut')
    for source, reason in {
        "bad.jsonl": "bad.jsonl, line 2: not JSON: Unterminated",
        "none.jsonl.gz": r"404.*data convert http\S+/none.jsonl.gz none.jsonl`$",
        "page.html": r"unknown format '\.html'; known are \.jsonl",
        "a b.jsonl": "within reach .*control characters",
    }.items():
        with pytest.raises(ValueError, match=reason) as caught:
            list(read_texts(f"{address}/{source}"))
        assert "\n" not in str(caught.value)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="OFFLINE is set.*data convert https://"):
        list(read_texts("https://example.org/x.txt"))


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz", "x.jsonl", "x.parquet"])
def test_a_download_that_breaks_off_is_never_used(site, name):
    folder, address, cut = site
    texts = [f"text number {index}" for index in range(2000)]
    text = "\n<|endoftext|>\n".join(texts)
    (folder / "x.txt").write_text(text)
    (folder / "x.txt.gz").write_bytes(gzip.compress(text.encode()))
    write_jsonl(({"text": text} for text in texts), folder / "x.jsonl")
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"text": text} for text in texts])
    pyarrow.parquet.write_table(table, folder / "x.parquet")
    cut["bytes"] = 3000
    with pytest.raises(ValueError, match="damaged or cut short: the connection broke"):
        list(read_texts(f"{address}/{name}"))
    cut["bytes"] = 0
    assert list(read_texts(f"{address}/{name}")) == texts


# ------------------------------------------------------------- very bad input


def peak_of(function):
    """The result of a function, or its error, and the most memory it took."""
    tracemalloc.start()
    try:
        result = function()
    except ValueError as error:
        result = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


@pytest.mark.slow
def test_one_line_of_100_megabytes_leaves_the_memory_flat(tmp_path, capsys):
    long = b"ab " * 33_400_000
    (tmp_path / "x.txt").write_bytes(long)
    rows = b'{"text": "one"}', long, b'{"text": "b"}'
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(rows))
    (tmp_path / "x.csv").write_bytes(b"text\n" + long + b"\n")
    del long, rows
    size, peak = peak_of(lambda: sum(map(len, read_texts(tmp_path / "x.txt"))))
    assert size == 100_200_000 and peak < 10e6
    said, peak = peak_of(lambda: list(read_texts(tmp_path / "x.jsonl")))
    assert "x.jsonl, line 2: longer than 16 MB" in said and peak < 70e6
    texts, _ = peak_of(lambda: list(read_texts(tmp_path / "x.jsonl", skip=True)))
    assert texts == ["one", "b"] and "skipped 1" in capsys.readouterr().err
    said, peak = peak_of(lambda: list(read_texts(tmp_path / "x.csv")))
    assert "x.csv, line 1: field larger than" in said and peak < 120e6
    for path in tmp_path.iterdir():
        path.unlink()


def test_items_and_rows_are_not_called_lines(tmp_path):
    (tmp_path / "x.json").write_text('[{"text": "a"}, {"text": 3}]')
    with pytest.raises(ValueError, match="x.json, item 2: column 'text' holds"):
        list(read_texts(tmp_path / "x.json"))
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"text": "a"}, {"text": None}])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="x.parquet, row 2: column 'text' holds"):
        list(read_texts(tmp_path / "x.parquet"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab é鸟🐦\n", max_size=40), min_size=1), st.integers(8, 40))
def test_documents_are_cut_between_characters(tmp_path_factory, texts, size):
    path = tmp_path_factory.mktemp("cut") / "x.txt"
    texts = [text.strip() for text in texts if text.strip()] or ["a"]
    path.write_text("<|endoftext|>".join(texts), encoding="utf-8", newline="\r\n")
    before, data.PIECE = data.PIECE, size
    try:
        pieces = list(read_texts(path))
    finally:
        data.PIECE = before
    assert "".join("".join(pieces).split()) == "".join("".join(texts).split())
    assert list(read_texts(path)) == texts


# ----------------------------------------------------- likeness and variety


def test_near_duplicates_are_found():
    story = " ".join(f"word{index}" for index in range(60))
    near, far = story.replace("word30 ", "other "), story[::-1]
    assert list(deduplicate([story, near, far, story])) == [story, near, far]
    assert list(deduplicate([story, near, far, story], likeness=0.7)) == [story, far]
    seen = NearDuplicates(0.7)
    assert seen.find(story) is None and seen.find(far) is None
    number, likeness = seen.find(near)
    assert number == 0 and 0.7 <= likeness < 1
    assert seen.find("小鸟飞了又飞，飞到了大树上。") is None
    assert seen.find("小鸟飞了又飞，飞到了大树上！") == (3, 1.0)
    assert NearDuplicates().find("") is None


def test_a_missing_library_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert list(deduplicate(["a", "a"])) == ["a"]
    with pytest.raises(ValueError, match="pip install datasketch"):
        list(deduplicate(["a", "a"], likeness=0.8))


def test_diversity_of_batches():
    same = diversity(["the same old story"] * 8)
    other = diversity([f"{a} saw {b} at {c}" for a, b, c in ("abc", "def", "ghi")])
    assert same["texts"] == 1 / 8 and same["runs of 1"] == 4 / 32
    assert other["texts"] == 1 and other["runs of 3"] == 1
    assert same["packed"] < 0.3
    assert diversity(["one"])["runs of 3"] == 0
    with pytest.raises(ValueError, match="no texts to compare"):
        diversity([])
