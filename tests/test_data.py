"""Chapter 01: reading, writing and measuring text."""

import csv
import gzip
import json
import math
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.data import (
    bits_per_byte,
    compress,
    deduplicate,
    entropy,
    held_out,
    read_jsonl,
    read_rows,
    read_texts,
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
    b'{"text": "cut': "not JSON: Unterminated string",
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
