"""Stopped anywhere, a run resumes to the same bits; it refuses what is not its own."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal

import pytest
import tiny_run
import torch
from tiny_run import make_model, make_trainer, result, token_file

from minillm import relay
from minillm.relay import load_optimizer
from minillm.support.checkpoints import last_checkpoint, list_checkpoints

PRELOAD = [
    "minillm.app.training",
    "minillm.tokenizer",
    "torch.utils.tensorboard",
    "torch._dynamo",  # the first optimizer imports it
]


@pytest.fixture(scope="module")
def server():
    """Processes that start in milliseconds: forked from one that has only imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@pytest.fixture(scope="module")
def unbroken(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    assert run_and_kill(server, folder, 0) == 0
    return result(folder)


def run_and_kill(server, folder, fuse, place=None):
    """The exit code of a process that trains until its `fuse` is burnt."""
    args = (folder, fuse, place)
    process = server.Process(target=tiny_run.train_until_killed, args=args)
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(7))
def test_killed_at_random_points_a_run_ends_in_the_same_bits(
    server, unbroken, seed, tmp_path
):
    dice, kills = random.Random(seed), 0
    while run_and_kill(server, tmp_path, dice.randint(5, 40) if kills < 4 else 0):
        kills += 1
    assert kills == 4
    rows, weights = result(tmp_path)
    assert rows == unbroken[0]
    assert weights == unbroken[1]
    assert not list((tmp_path / "run").glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "place, fuse",
    [
        ("next_token_loss", 12),  # the second of two passes
        ("clip_grad_norm", 8),  # a step begun, not done
        ("save_file", 2),  # half of a file of the second checkpoint
        ("flush_to_disk", 3),  # all written, not yet renamed
        ("remove", 2),  # an old checkpoint being deleted
    ],
)
def test_killed_at_the_worst_points(server, unbroken, place, fuse, tmp_path):
    assert run_and_kill(server, tmp_path, fuse, place) == -signal.SIGKILL
    assert run_and_kill(server, tmp_path, 0) == 0
    assert result(tmp_path) == unbroken


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_returns(unbroken, number, tmp_path):
    class Press:
        def on_log(self, trainer, row):
            if row["step"] == 6:
                os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    stopped = make_trainer(tmp_path, callbacks=[Press()]).train()
    assert (stopped["step"], stopped["stopped"]) == (6, number.name)
    assert list_checkpoints(tmp_path / "run")[-1].name == "checkpoint-000006"
    assert signal.getsignal(number) == before
    finished = make_trainer(tmp_path).train()
    assert (finished["step"], finished["stopped"]) == (12, "")
    rows, weights = result(tmp_path)
    assert [row["step"] for row in rows] == [row["step"] for row in unbroken[0]]
    for row, expected in zip(rows, unbroken[0], strict=True):
        known = {name: value for name, value in expected.items() if value is not None}
        assert {k: row[k] for k in known} == pytest.approx(known, rel=1e-4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    make_trainer(folder, max_steps=8, save_total_limit=3).train()
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


def damage_state(folder):
    (folder / "trainer_state.json").write_text('{"step":')


def damage_weights(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def damage_optimizer(folder):
    (folder / "optimizer.safetensors").unlink()


@pytest.mark.parametrize("damage", [damage_state, damage_weights, damage_optimizer])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(copy, damage, capsys):
    good, bad = list_checkpoints(copy / "run")
    assert (good.name, bad.name) == ("checkpoint-000004", "checkpoint-000008")
    damage(bad)
    folder, state = last_checkpoint(copy / "run")
    assert folder == good and state["progress"]["step"] == 4
    said = capsys.readouterr().out
    assert "checkpoint-000008 is damaged" in said and "the one before" in said
    make_trainer(copy, max_steps=8, save_total_limit=3).train()
    assert result(copy)[0] == result(copy.parent / "copy")[0]
    assert last_checkpoint(copy / "run")[0].name == "checkpoint-000008"


def test_when_all_are_damaged_nothing_starts_over(copy):
    for folder in list_checkpoints(copy / "run"):
        damage_state(folder)
    with pytest.raises(ValueError, match="none of the 2 checkpoints is whole"):
        make_trainer(copy, max_steps=8).train()


def test_it_repeats_the_damaged_part_to_the_same_bits(copy, finished):
    damage_weights(copy / "run/checkpoint-000008")
    make_trainer(copy, max_steps=8, save_total_limit=3).train()
    assert result(copy) == result(finished)


@pytest.mark.parametrize(
    "what, named",
    [
        (lambda f: dict(data=token_file(f, count=61)), "corpus was"),
        (lambda f: dict(model=make_model(hidden_size=8)), "hidden_size was 16, is 8"),
        (lambda f: dict(seed=1), "seed was 0, is 1"),
        (lambda f: dict(context_length=40), "context_length was 48, is 40"),
    ],
)
def test_another_runs_checkpoint_is_refused_and_the_difference_named(copy, what, named):
    with pytest.raises(ValueError, match=named):
        make_trainer(copy, **what(copy)).train()


def test_another_tokenizer_is_refused(copy):
    trainer = make_trainer(copy)
    trainer.identity["tokenizer"] = "another"
    with pytest.raises(ValueError, match="tokenizer was .*, is another"):
        trainer.train()


def test_other_settings_are_taken_and_named(copy, capsys):
    done = make_trainer(copy, max_steps=9, per_device_train_batch_size=4).train()
    assert done["step"] == 9
    said = capsys.readouterr().out
    assert "resuming from checkpoint-000008" in said
    assert "max_steps was 8, is 9" in said


def test_starting_over_in_a_folder_that_holds_a_run_is_refused(copy):
    with pytest.raises(ValueError, match="choose another output_dir"):
        make_trainer(copy).train(resume=False)


def test_a_finished_run_is_not_trained_again(copy):
    model = make_model(seed=5, dropout=0.1)
    done = make_trainer(copy, model=model, max_steps=8).train()
    assert done["step"] == 8 and "eval_loss" in done
    weights = relay.load_file(copy / "run/final/model.safetensors")
    assert torch.equal(model.norm.weight, weights["model.norm.weight"])


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    calls = []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    real = relay.save_file
    monkeypatch.setattr(relay, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        make_trainer(tmp_path).train()
    assert not list((tmp_path / "run").glob(".*"))
    assert last_checkpoint(tmp_path / "run")[0].name == "checkpoint-000004"
    assert make_trainer(tmp_path).train()["step"] == 12


def test_a_checkpoint_holds_no_pickle(finished):
    names = {path.name for path in list_checkpoints(finished / "run")[-1].iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors",
        "optimizer.safetensors", "special_tokens_map.json", "tokenizer.json",
        "tokenizer_config.json", "trainer_state.json",
    }  # fmt: skip


def test_moments_and_counters_come_back(finished):
    run = make_trainer(finished, max_steps=8)
    folder, _ = last_checkpoint(finished / "run")
    trainer = run.trainer
    load_optimizer(trainer.model, trainer.optimizer, folder / "optimizer.safetensors")
    for p in trainer.model.parameters():
        state = trainer.optimizer.state[p]
        assert state["step"].item() == 8 and state["exp_avg"].shape == p.shape
        assert state["exp_avg_sq"].abs().sum() > 0


def test_the_state_reads_as_json(finished):
    folder = list_checkpoints(finished / "run")[-1]
    state = json.loads((folder / "trainer_state.json").read_text())
    names = "progress batches loss_scale config identity saved files".split()
    assert set(state) == set(names)
    assert str(finished) not in json.dumps(state["identity"])


def test_stopped_by_another_process_it_saves_and_is_not_finished(tmp_path):
    """The sum of all processes' wishes is above 0, though this one has none."""
    run = make_trainer(tmp_path)
    real = run.processes.sum

    def sum_of_two(*values):
        total = real(*values)
        asked = values == (False,) and run.trainer.step == 5
        return [1.0] if asked else total

    run.processes.sum = sum_of_two
    assert run.train()["step"] == 5
    assert last_checkpoint(tmp_path / "run")[0].name == "checkpoint-000005"
    assert not (tmp_path / "run/final").exists()
    assert make_trainer(tmp_path).train()["step"] == 12


def test_stop_after_the_last_step_still_finishes(tmp_path):
    class Stop:
        def on_step_end(self, trainer):
            if trainer.step == 12:
                trainer.stop("no improvement")

    make_trainer(tmp_path, callbacks=[Stop()]).train()
    assert (tmp_path / "run/final/model.safetensors").exists()


def test_a_checkpoint_without_the_newer_entries_resumes(copy, finished):
    """Older checkpoints say neither "saved" nor "loss_scale"."""
    for folder in list_checkpoints(copy / "run"):
        path = folder / "trainer_state.json"
        state = json.loads(path.read_text())
        del state["saved"], state["loss_scale"]
        path.write_text(json.dumps(state))
    shutil.rmtree(copy / "run/checkpoint-000008")
    make_trainer(copy, max_steps=8, save_total_limit=3).train()
    assert result(copy) == result(finished)
