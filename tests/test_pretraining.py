"""Packed is seen as alone; the loss is a mean over tokens; a run is what it says."""

import math
import multiprocessing
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import make_model, make_texts, make_trainer, result, token_file, tokenizer

from minillm import pretraining, run_log
from minillm.pretraining import (
    Ahead,
    Batches,
    RowStream,
    TokenFile,
    Trainer,
    TrainingConfig,
    Validation,
    batch_nats,
    evaluate,
    learning_rate_at,
    pack,
    token_losses,
)
from minillm.tokenizer import train_bpe, write_tokens


class Documents:
    """A data set in memory, with labels of its own."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        ids = np.arange(self.lengths[i]) + 1000 * i
        return ids, ids + 1


# ---------------------------------------------------------------- the token file


def test_a_document_is_two_views_one_token_apart(tmp_path):
    data, eot = token_file(tmp_path, count=5), tokenizer().eos_token_id
    assert len(data) == len(data.lengths) == 5
    for i, text in enumerate(make_texts(5)):
        ids = tokenizer().encode(text)
        inputs, labels = data[i]
        assert inputs.tolist() == [eot, *ids] and labels.tolist() == [*ids, eot]
        assert data.lengths[i] == len(ids) + 1
        assert np.shares_memory(inputs, labels)


def test_a_file_of_another_tokenizer_is_refused(tmp_path):
    other = train_bpe(make_texts(20), 270)
    write_tokens(make_texts(5), tokenizer(), tmp_path / "a.npy")
    with pytest.raises(ValueError, match="another tokenizer"):
        TokenFile(tmp_path / "a.npy", other)


def test_an_empty_file_is_refused(tmp_path):
    write_tokens([], tokenizer(), tmp_path / "a")
    with pytest.raises(ValueError, match="a.npy holds no documents"):
        TokenFile(tmp_path / "a")


# ---------------------------------------------------------------- packing, batches


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(50, 80))
def test_pack_places_each_document_once_and_no_row_overflows(lengths, context):
    rows = pack(lengths, context)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= context for row in rows)
    shortest = min(lengths)  # two rows could not have been one
    loads = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) == 1 or loads[0] + loads[1] > context or shortest > context / 2


def test_packed_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(5, 120, 2000)
    rows = pack(lengths, 192)
    assert lengths.sum() / (192 * len(rows)) > 0.97


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 70), min_size=1, max_size=12),
    st.integers(8, 40),
    st.integers(0, 5),
)
def test_every_epoch_holds_every_piece_of_every_document_once(lengths, context, seed):
    data = Documents(lengths)
    batches = Batches(data, rows=1, context=context, seed=seed)
    total = batches.stream.window  # pieces of one window
    seen = {}
    for _ in range(len(batches.stream.pack_window(0))):
        batch = next(batches)
        used = batch["document_ids"][0] >= 0
        assert torch.equal(used, batch["labels"][0] >= 0)
        assert batch["input_ids"][0, ~used].eq(0).all()
        for d in batch["document_ids"][0, used].unique():
            here = batch["document_ids"][0] == d
            ids, places = batch["input_ids"][0, here], batch["position_ids"][0, here]
            assert torch.equal(batch["labels"][0, here], ids + 1)
            assert torch.equal(places, torch.arange(len(ids)))
            assert torch.equal(ids, ids[0] + places)
            seen[ids[0].item()] = seen.get(ids[0].item(), 0) + 1
    assert sum(seen.values()) == total
    pieces = sum(-(-length // context) for length in lengths)
    assert {count - total // pieces for count in seen.values()} <= {0, 1}
    assert len(seen) == min(pieces, total)


def test_a_new_epoch_is_a_new_order():
    stream = RowStream([10] * 100, context=10)
    rows = [next(stream).item() for _ in range(200)]
    stream.load_state_dict({"window": -1, "row": 0})
    assert rows == [next(stream).item() for _ in range(200)]
    assert stream.order(0).tolist() != stream.order(1).tolist()
    other = RowStream([10] * 100, context=10, seed=1)
    assert rows != [next(other).item() for _ in range(200)]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 40), st.integers(1, 5), st.integers(1, 5))
def test_a_state_continues_exactly_with_any_number_of_rows(steps, rows, other_rows):
    data = Documents([7, 19, 3, 30, 11] * 9)
    first = Batches(data, rows, 32)
    for _ in range(steps):
        next(first)
    again = Batches(data, rows, 32)
    again.load_state_dict(first.state_dict())
    assert again.epoch == pytest.approx(first.epoch)
    reference = [next(first) for _ in range(3)]
    assert all(same(next(again), batch) for batch in reference)
    other = Batches(data, other_rows, 32)
    state = Batches(data, rows, 32)
    for _ in range(steps):
        next(state)
    other.load_state_dict(state.state_dict())
    expected = torch.cat([batch["input_ids"] for batch in reference])
    got = torch.cat([next(other)["input_ids"] for _ in range(3 * rows)])
    assert torch.equal(got[: len(expected)], expected)


def test_ranks_share_one_global_batch():
    data = Documents([7, 19, 3, 30, 11] * 9)
    alone = Batches(data, 6, 32)
    team = [Batches(data, 2, 32, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(20):
        parts = [next(batches) for batches in team]
        joined = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
        assert same(next(alone), joined)


def test_no_documents_is_an_error():
    with pytest.raises(ValueError, match="no documents to train on"):
        Batches(Documents([]), 1, 8)


def test_a_packed_document_is_seen_as_one_alone(tmp_path):
    data, model = token_file(tmp_path), make_model().double().eval()
    batches = Batches(data, 4, 64)
    batch = next(batches)
    assert (batch["document_ids"] > 0).any() and (batch["labels"] == -100).any()
    together, alone = batch_nats(model, batch), []
    for row in batches.documents:
        nats = 0.0
        for i in row:
            ids, labels = (torch.from_numpy(x.astype(np.int64))[None] for x in data[i])
            places = torch.arange(ids.shape[1])[None]
            names = ("input_ids", "labels", "position_ids", "document_ids")
            values = (ids, labels, places, torch.zeros_like(ids))
            nats += batch_nats(model, dict(zip(names, values, strict=True))).item()
        alone.append(nats)
    assert together.tolist() == pytest.approx(alone, rel=1e-6)


# ---------------------------------------------------------------- measuring


def test_token_losses_equal_one_document_at_a_time():
    model = make_model(max_position_embeddings=64)
    ids = [tokenizer().encode(text) for text in make_texts(9)]
    found = token_losses(model, ids, begin=0, batch_tokens=150)
    for losses, document in zip(found, ids, strict=True):
        logits = model(torch.tensor([[0, *document]]))[0]
        labels = torch.tensor([*document, 0])
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(torch.tensor(losses).float(), expected)


def test_longer_documents_are_scored_in_pieces_and_every_token_once():
    model = make_model(max_position_embeddings=16)
    (losses,) = token_losses(model, [[5] * 40], begin=0)
    assert len(losses) == 41 and (losses > 0).all()
    (short,) = token_losses(model, [[5] * 15], begin=0)
    np.testing.assert_allclose(losses[:15], short[:15], rtol=1e-5)


def test_evaluate_is_total_nats_over_total_bytes():
    model, texts = make_model(), make_texts(7)
    with torch.no_grad():
        model.embed_tokens.weight.zero_()  # tied: every token is as likely
    found = evaluate(model, tokenizer(), Validation(texts, bits=[10.0] * 7))
    tokens = sum(len(tokenizer().encode(text)) + 1 for text in texts)
    size = sum(len(text.encode()) for text in texts)
    vocab = tokenizer().vocab_size
    assert found["loss"] == pytest.approx(math.log(vocab))
    assert found["perplexity"] == pytest.approx(vocab, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(tokens * math.log2(vocab) / size)
    assert found["floor"] == pytest.approx(70 / size)
    above = 100 * (found["bits_per_byte"] / found["floor"] - 1)
    assert found["above_floor"] == pytest.approx(above)


def test_evaluate_leaves_the_mode_alone_and_needs_no_floor():
    model = make_model(dropout=0.5).train()
    first = evaluate(model, tokenizer(), Validation(make_texts(3)))
    assert first == evaluate(model, tokenizer(), Validation(make_texts(3)))
    assert model.training and first["floor"] is first["above_floor"] is None


def test_validation_reads_jsonl(tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_text(
        '{"text": "ab", "bits": 3.0, "kind": "x"}\n{"text": "é", "bits": 1.0}\n'
    )
    read = Validation.from_jsonl(path)
    assert (read.num_bytes, read.floor, read.kinds) == (4, 1.0, None)
    assert Validation.from_jsonl(path, limit=1).kinds == ["x"]
    with pytest.raises(ValueError, match="no documents to validate on"):
        Validation([])


# ---------------------------------------------------------------- the loop


def weights_after(folder, **changes):
    model = make_model()
    trainer = make_trainer(folder, model=model, validation=0, **changes)
    trainer.train()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_accumulation_equals_the_large_batch(tmp_path):
    settings = dict(max_steps=5, save_steps=0)
    small = dict(per_device_train_batch_size=2, gradient_accumulation_steps=3)
    large = dict(per_device_train_batch_size=6, gradient_accumulation_steps=1)
    a = weights_after(tmp_path / "a", data=token_file(tmp_path), **settings, **small)
    b = weights_after(tmp_path / "b", data=token_file(tmp_path), **settings, **large)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    losses = [
        [row["loss"] for row in result(tmp_path / name)[0]] for name in ("a", "b")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_logged_loss_is_the_mean_over_tokens(tmp_path):
    data, model = token_file(tmp_path), make_model()
    batches, (nats, tokens) = Batches(data, 2, 48), (0.0, 0)
    for _ in range(2):
        batch = next(batches)
        nats += batch_nats(model, batch).sum().item()
        tokens += (batch["labels"] != -100).sum().item()
    trainer = make_trainer(tmp_path, data, model, validation=0, max_steps=1)
    trainer.train()
    row = result(tmp_path)[0][0]
    assert row["loss"] == pytest.approx(nats / tokens, rel=1e-6)
    assert row["tokens"] == tokens


def test_the_first_step_already_has_its_rate(tmp_path):
    rates = []

    class Watch:
        def on_log(self, trainer, row):
            rates.append([group["lr"] for group in trainer.optimizer.param_groups])

    trainer = make_trainer(
        tmp_path, callbacks=[Watch()], validation=0, max_steps=4, logging_steps=1,
        warmup_steps=4, learning_rate=1.0e-3, embedding_lr_scale=0.5,
    )  # fmt: skip
    trainer.train()
    scales = [group["lr_scale"] for group in trainer.optimizer.param_groups]
    assert sorted(scales) == [0.5, 1.0, 1.0]
    for step, found in enumerate(rates):
        assert found == pytest.approx([1e-3 * (step + 1) / 4 * x for x in scales])


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_start_above_0_and_reach_the_rate(kind):
    config = TrainingConfig(max_steps=100, warmup_steps=10, lr_scheduler_type=kind)
    rates = [learning_rate_at(config, step) for step in range(100)]
    assert 0 < rates[0] < rates[8] < rates[9] == max(rates) == config.learning_rate
    config = TrainingConfig(max_steps=100, warmup_steps=0, lr_scheduler_type=kind)
    assert learning_rate_at(config, 0) == config.learning_rate


def test_callbacks_are_told_and_can_add_to_the_log(tmp_path):
    told = []

    class Watch:
        def on_evaluate(self, trainer, row):
            row["sample"] = f"at {row['step']}"
            torch.rand(7)  # does not change the training

        def on_save(self, trainer, folder):
            told.append(folder.name)

    make_trainer(tmp_path / "a", token_file(tmp_path), callbacks=[Watch()]).train()
    make_trainer(tmp_path / "b", token_file(tmp_path)).train()
    rows, weights = result(tmp_path / "a")
    assert told == ["checkpoint-000004", "checkpoint-000008", "checkpoint-000012"]
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

    trainer = make_trainer(tmp_path, callbacks=[Break()])
    expected = Batches(trainer.dataset, 4, 48)
    for _ in range(4):
        next(expected)
    first = sorted({i for row in expected.documents for i in row})
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    text = str(error.value)
    assert "step 4" in text and "in 4 of 4 rows" in text and "checkpoint-000003" in text
    assert "documents " + ", ".join(map(str, first[:20])) in text
    folder, state = pretraining.last_checkpoint(tmp_path / "run")
    assert folder.name == "checkpoint-000003" and state["progress"]["step"] == 3
    good = Batches(trainer.dataset, 4, 48)
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

    monkeypatch.setattr(pretraining, "batch_nats", explode)
    with pytest.raises(MemoryError, match="batch_size=1, gradient.*steps=4"):
        make_trainer(tmp_path).train()


def test_an_error_of_ours_stays_what_it_is(tmp_path, monkeypatch):
    def explode(model, batch):
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(pretraining, "batch_nats", explode)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make_trainer(tmp_path).train()


def test_a_compiler_that_fails_is_named(tmp_path, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def explode(model, batch):
        raise TorchDynamoException("no C++ compiler\nlong story")

    monkeypatch.setattr(pretraining, "batch_nats", explode)
    monkeypatch.setattr(torch, "compile", lambda model: model)
    with pytest.raises(ValueError, match="torch_compile fails here.*compiler$"):
        make_trainer(tmp_path, torch_compile=True).train()


def test_a_model_that_cannot_fit_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, "memory_there", lambda device: 1000)
    with pytest.raises(ValueError, match="only 0 MB are free.*smaller preset"):
        make_trainer(tmp_path).train()
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_batch_that_may_not_fit_is_warned_of(tmp_path, monkeypatch, capsys):
    model = make_model()
    monkeypatch.setattr(
        run_log, "memory_there", lambda device: 17 * model.num_parameters()
    )
    make_trainer(tmp_path, model=model, max_steps=1).train()
    said = capsys.readouterr().out
    assert "warning: memory:" in said and "batch_size=1, gradient" in said


def test_data_that_do_not_fill_a_row_are_remarked_on(tmp_path, capsys):
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
    from types import SimpleNamespace

    words = SimpleNamespace(eos_token_id=None, vocab_size=10)
    with pytest.raises(ValueError, match="names no eos_token"):
        pretraining.check_fit(make_model(), words, TrainingConfig(context_length=48))


def test_the_log_says_what_the_machine_achieves(tmp_path):
    trainer = make_trainer(tmp_path, validation=0, max_steps=3, save_steps=0)
    trainer.train()
    (row,) = trainer.log.rows
    assert 0 < row["flops_per_second"] < 1e13 and row["memory"] > 2**25
    each = row["flops_per_second"] / row["tokens_per_second"]
    assert each > 6 * trainer.model.layers[0].mlp.up_proj.weight.numel()


def test_stop_saves_and_returns(tmp_path):
    class Enough:
        def on_log(self, trainer, row):
            trainer.stop("enough")

    done = make_trainer(tmp_path, callbacks=[Enough()]).train()
    assert (done["step"], done["stopped"]) == (3, "enough")
    assert make_trainer(tmp_path).train()["step"] == 12


@pytest.mark.parametrize("precision", ["bf16", "medium", "auto"])
def test_every_precision_trains(precision, tmp_path):
    make_trainer(tmp_path, precision=precision, validation=0).train()
    losses = [row["loss"] for row in result(tmp_path)[0]]
    assert losses[-1] < losses[0] - 0.3


def test_it_overfits_a_single_document(tmp_path):
    class One(Documents):
        def __getitem__(self, i):
            ids = np.random.default_rng(0).integers(0, 280, self.lengths[i] + 1)
            return ids[:-1], ids[1:]

    trainer = make_trainer(
        tmp_path, One([48]), make_model(), validation=0, max_steps=60, save_steps=0,
        logging_steps=60, learning_rate=3e-2, gradient_accumulation_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    assert isinstance(trainer, Trainer)
    trainer.train()
    assert batch_nats(trainer.model, next(trainer.batches)).sum().item() / 96 < 0.5


# ------------------------------------------------------ what a GPU asks for


def test_ahead_hands_out_the_same_batches_and_states(tmp_path):
    data = token_file(tmp_path)
    direct, ahead = Batches(data, 3, 48), Ahead(Batches(data, 3, 48))
    states = []
    for _ in range(40):  # through several windows
        states.append(direct.state_dict())
        expected, found = next(direct), next(ahead)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert direct.documents == ahead.documents
        assert (direct.state_dict(), direct.epoch) == (ahead.state_dict(), ahead.epoch)
    for state in (states[7], states[30], states[0]):
        direct.load_state_dict(state), ahead.load_state_dict(state)
        assert ahead.state_dict() == state
        assert torch.equal(next(direct)["labels"], next(ahead)["labels"])


def test_a_run_that_draws_ahead_resumes_to_the_same_bits(tmp_path):
    def trainer(name, **changes):
        run = make_trainer(tmp_path / name, token_file(tmp_path), **changes)
        run.batches = Ahead(run.batches)
        return run

    class Stop:
        def on_log(self, trainer, row):
            trainer.stop("for now")

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    trainer("a").train()
    trainer("b", callbacks=[Stop()]).train()
    trainer("b").train()
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
    assert isinstance(run.optimizer, torch.optim.AdamW)


# ---------------------------------------------------------------- many processes


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["minillm.pretraining", "torch.utils.tensorboard", "torch._dynamo"]
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


@pytest.mark.slow
def test_the_number_of_threads_does_not_show_in_the_printed_digits(tmp_path):
    losses, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            weights_after(tmp_path / str(number), data=token_file(tmp_path))
            rows = result(tmp_path / str(number))[0]
            losses.append([f"{row['loss']:.2f}" for row in rows])
    finally:
        torch.set_num_threads(threads)
    assert losses[0] == losses[1] == losses[2] and len(losses[0]) == 4


FAULTS = """
import resource, sys, torch
from minillm.pretraining import keep_freed_memory
torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        (torch.ones(6_000_000) + 1).sum()  # 24 MB, freed again
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given, kept, after = faults(), keep_freed_memory(), faults()
print(int(kept), given, after)
"""


@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_step():
    """Counted in pages that the system must hand out, not in seconds."""
    told = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    kept, given, after = map(int, told.stdout.split())
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert after < given / 2


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(pretraining.sys, "platform", "darwin")
    assert pretraining.keep_freed_memory() is False
