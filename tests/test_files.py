"""Files that are whole or not there: atomic writes, JSON, checksums."""

import pytest

from minillm.support.files import (
    flush_to_disk,
    read_json,
    remove,
    sha256_of,
    write_atomic,
    write_json,
)
from minillm.support.formats import read_jsonl, write_jsonl
from minillm.support.sources import read_texts


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


def test_json_is_written_whole_and_an_error_names_the_file(tmp_path):
    path = tmp_path / "x.json"
    write_json({"name": "小鸟", "count": 2}, path)
    assert read_json(path) == {"name": "小鸟", "count": 2}
    assert "小鸟" in path.read_text("utf-8") and path.read_text("utf-8")[-1] == "\n"
    with pytest.raises(TypeError):
        write_json({"name": object()}, path)
    assert read_json(path)["count"] == 2
    for bad in '{"name": ', "[" * 100_000:
        path.write_text(bad)
        with pytest.raises(ValueError, match=r"x\.json: not JSON"):
            read_json(path)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    def rows():
        yield {"text": "One."}
        raise OSError(28, "no space left on device")

    with pytest.raises(OSError, match=r"no space left.*x\.jsonl"):
        write_jsonl(rows(), tmp_path / "x.jsonl")
    assert not list(tmp_path.iterdir())


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "x") == known


def test_everything_is_on_the_disk_and_anything_can_be_removed(tmp_path):
    fill(tmp_path / "folder", "first")
    flush_to_disk(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for name in "link", "folder", "never there":
        remove(tmp_path / name)
        assert not (tmp_path / name).exists()
        assert name != "link" or (tmp_path / "folder/inside.txt").exists()
