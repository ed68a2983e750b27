"""Checkpoint folders: complete or not there, checked when read, pruned."""

import json

import pytest

from minillm.support.checkpoints import (
    last_checkpoint,
    list_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    remove_leftovers,
    write_checkpoint,
)


def write(folder, step, text="weights"):
    place = folder / f"checkpoint-{step:06d}"
    write_checkpoint(place, lambda p: (p / "w").write_text(text), {"step": step})
    return place


def test_state_and_checksums_are_beside_the_files(tmp_path):
    place = write(tmp_path, 3)
    assert sorted(path.name for path in place.iterdir()) == ["trainer_state.json", "w"]
    state = read_checkpoint(place)
    assert state["step"] == 3 and set(state["files"]) == {"w"}
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


def test_what_fails_half_way_leaves_nothing_and_what_was_there(tmp_path):
    place = write(tmp_path, 3)

    def fail(path):
        (path / "w").write_text("half")
        raise ZeroDivisionError

    for name in ("checkpoint-000003", "checkpoint-000004"):
        with pytest.raises(ZeroDivisionError):
            write_checkpoint(tmp_path / name, fail, {})
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert (place / "w").read_text() == "weights"
    assert read_checkpoint(place)["step"] == 3


def test_written_again_the_new_one_replaces_the_old(tmp_path):
    write(tmp_path, 3)
    place = write(tmp_path, 3, "others")
    assert (place / "w").read_text() == "others"
    assert read_checkpoint(place) and list_checkpoints(tmp_path) == [place]


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda p: (p / "w").write_text("weighty"), "w is not what was written"),
        (lambda p: (p / "w").unlink(), "w is missing"),
        (
            lambda p: (p / "trainer_state.json").unlink(),
            "trainer_state.json is missing",
        ),
        (lambda p: (p / "trainer_state.json").write_text("{"), "damaged"),
        (lambda p: (p / "trainer_state.json").write_text("[]"), "damaged"),
        (lambda p: (p / "trainer_state.json").write_text('{"step": 3}'), "damaged"),
    ],
)
def test_every_damage_is_named(tmp_path, damage, reason):
    place = write(tmp_path, 3)
    damage(place)
    with pytest.raises(
        ValueError, match=f"checkpoint-000003 is damaged.*{reason}|{reason}"
    ):
        read_checkpoint(place)


def test_the_last_complete_one_is_found(tmp_path, capsys):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "not there") is None
    for step in (9, 10, 100_000_000):
        write(tmp_path, step)
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["checkpoint-000009", "checkpoint-000010", "checkpoint-100000000"]
    (tmp_path / names[-1] / "w").unlink()
    folder, state = last_checkpoint(tmp_path)
    assert (folder.name, state["step"]) == ("checkpoint-000010", 10)
    assert "w is missing; going back to the one before" in capsys.readouterr().out
    for name in names[:2]:
        (tmp_path / name / "w").unlink()
    with pytest.raises(ValueError, match="none of the 3 checkpoints is whole"):
        last_checkpoint(tmp_path)


def test_other_folders_are_no_checkpoints(tmp_path):
    write(tmp_path, 3)
    (tmp_path / "checkpoint-of-mine").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000003"]


@pytest.mark.parametrize(
    "limit, best, left",
    [(1, None, [4]), (2, None, [3, 4]), (2, 1, [1, 3, 4]), (9, None, [1, 2, 3, 4])],
)
def test_the_last_few_and_the_best_are_kept(tmp_path, limit, best, left):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    prune_checkpoints(tmp_path, limit, best and f"checkpoint-{best:06d}")
    assert [json.loads((p / "trainer_state.json").read_text())["step"]
            for p in list_checkpoints(tmp_path)] == left  # fmt: skip


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    place = write(tmp_path, 3)
    for name in (".tmp-7-checkpoint-000004", ".old-checkpoint-000002"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w").write_text("half")
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [place]
    remove_leftovers(tmp_path / "not there")
