"""A whole run in a folder: what it writes, refuses and reports; many processes."""

import multiprocessing
import socket
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_run
import torch
from tiny_run import make_model, make_trainer, result, token_file

from minillm import pretraining
from minillm.app import training
from minillm.app.training import RunConfig
from minillm.pretraining import Batches
from minillm.support.checkpoints import last_checkpoint
from minillm.support.prefetch import Prefetch


def test_callbacks_are_notified_and_can_add_to_the_log(tmp_path):
    seen = []

    class Watch:
        def on_evaluate(self, trainer, row):
            row["sample"] = f"at {row['step']}"
            torch.rand(7)  # does not change the training

        def on_save(self, trainer, folder):
            seen.append(folder.name)

    make_trainer(tmp_path / "a", token_file(tmp_path), callbacks=[Watch()]).train()
    make_trainer(tmp_path / "b", token_file(tmp_path)).train()
    rows, weights = result(tmp_path / "a")
    assert seen == ["checkpoint-000004", "checkpoint-000008", "checkpoint-000012"]
    samples = [row.pop("sample") for row in rows if "sample" in row]
    assert samples == ["at 0", "at 4", "at 8", "at 12"]
    assert (rows, weights) == result(tmp_path / "b")


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path, monkeypatch):
    losses = iter([9.0, 5.0, 3.0, 4.0, 4.5, 4.6])

    def fake(*arguments):
        blank = dict.fromkeys(["perplexity", "floor", "above_floor"])
        return {"loss": next(losses), "bits_per_byte": 1.0, **blank}

    monkeypatch.setattr(pretraining, "evaluate", fake)
    settings = dict(max_steps=10, eval_steps=2, save_steps=2, save_total_limit=2)
    make_trainer(tmp_path, **settings).train()
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint*"))
    numbers = [int(name.rpartition("-")[2]) for name in names]
    assert numbers == [4, 8, 10]


def test_a_loss_that_is_no_number_stops_saves_and_names_the_batch(tmp_path):
    class Break:
        def on_log(self, trainer, row):
            if row["step"] == 3:
                trainer.model.norm.weight.data[0] = torch.nan

    run = make_trainer(tmp_path, callbacks=[Break()])
    expected = Batches(run.dataset, 4, 48)
    for _ in range(4):
        next(expected)
    first = sorted({i for row in expected.documents for i in row})
    with pytest.raises(FloatingPointError) as error:
        run.train()
    text = str(error.value)
    assert "step 4" in text and "in 4 of 4 rows" in text and "checkpoint-000003" in text
    assert "documents " + ", ".join(map(str, first[:20])) in text
    folder, state = last_checkpoint(tmp_path / "run")
    assert folder.name == "checkpoint-000003" and state["progress"]["step"] == 3
    good = Batches(run.dataset, 4, 48)
    for _ in range(3):
        next(good)
    assert state["batches"] == good.state_dict()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    ],
)
def test_out_of_memory_says_what_to_change(error, tmp_path, monkeypatch):
    def explode(model, batch):
        raise error

    monkeypatch.setattr(pretraining, "next_token_loss", explode)
    with pytest.raises(MemoryError, match="batch_size=1, gradient.*steps=4"):
        make_trainer(tmp_path).train()


def test_an_error_of_ours_stays_what_it_is(tmp_path, monkeypatch):
    def explode(model, batch):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(pretraining, "next_token_loss", explode)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_trainer(tmp_path).train()


def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def explode(model, batch):
        raise TorchDynamoException("no C++ compiler\nlong story")

    monkeypatch.setattr(pretraining, "next_token_loss", explode)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    with pytest.raises(ValueError, match="torch_compile fails here.*compiler$"):
        make_trainer(tmp_path, torch_compile=True).train()


def test_a_model_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "memory_there", lambda device: 1000)
    with pytest.raises(ValueError, match="only 0 MB are free.*smaller preset"):
        make_trainer(tmp_path).train()
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_batch_that_may_not_fit_is_warned_of(tmp_path, monkeypatch, capsys):
    model = make_model()
    monkeypatch.setattr(
        training, "memory_there", lambda device: 17 * model.num_parameters()
    )
    make_trainer(tmp_path, model=model, max_steps=1).train()
    said = capsys.readouterr().out
    assert "warning: memory:" in said and "batch_size=1, gradient" in said


def test_data_shorter_than_a_row_is_warned_of(tmp_path, capsys):
    data = token_file(tmp_path, count=1)
    data.lengths = data.lengths[:1] * 0 + 5
    data.ends = np.array([0, 5])
    make_trainer(tmp_path, data, validation=0, max_steps=1).train()
    assert "all the data is 5 tokens, less than one row" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, reason",
    [
        (dict(precision="fp8"), "precision='fp8' is not one of float32"),
        (dict(lr_scheduler_type="step"), "is not one of linear, cosine, constant"),
        (dict(max_steps=0), "max_steps=0 must be at least 1"),
        (dict(optim="lion"), "optim='lion' is not one of adamw, adamw_torch_fused"),
        (dict(report_to="paper"), "'paper' is not one of tensorboard, wandb"),
        (dict(context_length=65), "context_length=65 is more than the model's max_pos"),
    ],
)
def test_settings_that_cannot_be_are_named(change, reason, tmp_path):
    with pytest.raises(ValueError, match=reason):
        make_trainer(tmp_path, **change)


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path):
    small = make_model()
    small.config.vocab_size = 100
    with pytest.raises(ValueError, match="280 tokens, the model only vocab_size=100"):
        make_trainer(tmp_path, model=small)


def test_a_tokenizer_without_an_end_token_is_refused():
    words = SimpleNamespace(eos_token_id=None, vocab_size=10)
    with pytest.raises(ValueError, match="names no eos_token"):
        training.check_fit(make_model(), words, RunConfig(context_length=48))


def test_the_log_says_what_the_machine_achieves(tmp_path):
    run = make_trainer(tmp_path, validation=0, max_steps=3, save_steps=0)
    run.train()
    (row,) = run.rows
    assert 0 < row["flops_per_second"] < 1e13 and row["memory"] > 2**25
    each = row["flops_per_second"] / row["tokens_per_second"]
    assert each > 6 * run.model.layers[0].mlp.up_proj.weight.numel()


def test_stop_saves_and_returns(tmp_path):
    class Enough:
        def on_log(self, trainer, row):
            trainer.stop("enough")

    done = make_trainer(tmp_path, callbacks=[Enough()]).train()
    assert (done["step"], done["stopped"]) == (3, "enough")
    assert make_trainer(tmp_path).train()["step"] == 12


def test_a_run_with_prefetch_resumes_to_the_same_bits(tmp_path):
    def start(name, **changes):
        run = make_trainer(tmp_path / name, token_file(tmp_path), **changes)
        run.trainer.batches = Prefetch(run.trainer.batches)
        return run

    class Stop:
        def on_log(self, trainer, row):
            trainer.stop("for now")

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    start("a").train()
    start("b", callbacks=[Stop()]).train()
    start("b").train()
    assert result(tmp_path / "a")[1] == result(tmp_path / "b")[1]


def test_the_fused_optimizer_is_the_same_and_resumes(tmp_path):
    kept = []
    for name, optim in (("a", "adamw"), ("b", "adamw_torch_fused")):
        run = make_trainer(
            tmp_path / name, token_file(tmp_path), make_model(), validation=0,
            optim=optim, max_steps=8,
        )  # fmt: skip
        run.train()
        kept.append(torch.cat([p.detach().flatten() for p in run.model.parameters()]))
    torch.testing.assert_close(*kept, rtol=1e-3, atol=1e-4)
    fused = dict(validation=0, optim="adamw_torch_fused")
    run = make_trainer(
        tmp_path / "b", token_file(tmp_path), make_model(), max_steps=12, **fused
    )
    assert run.train()["step"] == 12
    assert isinstance(run.trainer.optimizer, torch.optim.AdamW)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["minillm.app.training", "torch.utils.tensorboard", "torch._dynamo"]
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = dict(max_steps=6, per_device_train_batch_size=2, logging_steps=1)
    token_file(tmp_path)
    args = [(rank, 2, port, tmp_path, settings) for rank in range(2)]
    team = [context.Process(target=tiny_run.train_as, args=item) for item in args]
    for process in team:
        process.start()
    for process in team:
        process.join(60)
    assert [process.exitcode for process in team] == [0, 0]
    model = make_model()
    alone = dict(settings, per_device_train_batch_size=4)
    make_trainer(tmp_path / "alone", token_file(tmp_path), model, **alone).train()
    together, one = result(tmp_path)[0], result(tmp_path / "alone")[0]
    assert len(one) == len(together) == 6 + 3
    for a, b in zip(together, one, strict=True):
        known = {name: value for name, value in b.items() if value is not None}
        assert {name: a[name] for name in known} == pytest.approx(known, rel=2e-4)
