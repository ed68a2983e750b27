"""Texts from files: every format gives the same rows, and an error says where."""

import csv
import gzip
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.support import formats
from minillm.support.formats import read_jsonl, read_rows, write_jsonl
from minillm.support.sources import read_texts

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


def test_skipped_lines_are_counted_and_the_first_is_reported(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "good"}', *BAD_LINES, b'{"text": "end"}']))
    assert list(read_texts(path, skip=True)) == ["good", "end"]
    said = capsys.readouterr().err
    assert f"{path}: kept 2; skipped {len(BAD_LINES)}, the first: " in said
    assert "line 2: not JSON" in said


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
    one, two = mark + b'{"text": "one"}\r\n', mark + b'{"text": "two"}\r\n'
    (tmp_path / "a.jsonl").write_bytes(one + two)  # two files, one after the other
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


def test_rows_keep_their_other_columns(tmp_path):
    for path in write_all(tmp_path)[:5]:
        assert [row["kind"] for row in read_rows(path)] == ["story"] * 4


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
    before, formats.PIECE = formats.PIECE, size
    try:
        pieces = list(read_texts(path))
    finally:
        formats.PIECE = before
    assert "".join("".join(pieces).split()) == "".join("".join(texts).split())
    assert list(read_texts(path)) == texts


@pytest.mark.parametrize("content", ["[" * 100_000, '[{"text": ' + "[" * 100_000])
def test_a_list_nested_too_deeply_is_an_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "deep.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"deep\.json: its brackets are nested too"):
        list(read_texts(path))
    path.write_text(content.replace("[", "{", 1))
    with pytest.raises(
        ValueError, match=r"deep\.json, line 1: (not JSON|its brackets)"
    ):
        list(read_texts(path))


def test_an_error_in_a_list_says_line_and_column(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[{"text": "a"},\n {"text": "b",}]')
    with pytest.raises(
        ValueError, match=r"x\.json: not JSON: .* at line 2, column 1\d"
    ):
        list(read_texts(path))
    path.write_text('[{"text": "a"}, ["b"]]')
    with pytest.raises(ValueError, match=r"x\.json, item 2: type list, where an obj"):
        list(read_texts(path))


def test_a_text_that_is_not_utf8_names_the_line_its_document_begins_on(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"one\n<|endoftext|>\ntwo\nbad \xff\n<|endoftext|>three")
    with pytest.raises(ValueError, match=r"x\.txt, line 3: byte 0xff after .*bad '"):
        list(read_texts(path))
    assert list(read_texts(path, skip=True)) == ["one", "three"]
