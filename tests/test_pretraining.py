"""Packed is seen as alone; the loss is a mean over tokens; the loop is 12 lines."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import make_model, make_texts, make_trainer, result, token_file, tokenizer

from minillm.attention import document_mask
from minillm.optimization import (
    AdamW,
    clip_grad_norm,
    cosine_schedule,
    parameter_groups,
    set_learning_rate,
)
from minillm.pretraining import (
    Batches,
    LogCallback,
    RowStream,
    Trainer,
    TrainingConfig,
    Validation,
    evaluate,
    next_token_loss,
    pack,
    token_losses,
)
from minillm.support import devices
from minillm.support.prefetch import Prefetch


class Documents:
    """A data set in memory, with labels of its own."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        ids = np.arange(self.lengths[i]) + 1000 * i
        return ids, ids + 1


# ------------------------------------------------- the checks of the exercises


def exercise(name, **given):
    """A check of chapter 09, as its cell defines it."""
    path = Path(__file__).parent.parent / "notebooks/09_pretraining.ipynb"
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code" and text.startswith(f"def {name}("):
            exec(text, names := {"np": np, "math": math, "torch": torch, **given})
            return names[name]
    raise AssertionError(f"no cell begins with {name}")


def fair(tokens):
    return [sum(tokens) / (len(tokens) * count) for count in tokens]


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda t: None, "is the return missing?"),
        (lambda t: 1.0, "one number for each pass"),
        (lambda t: [1.0] * len(t), "is not right"),
        (lambda t: [math.nan] * len(t), "is not right"),
        (lambda t: [1 / x for x in fair(t)], "is not right"),
        (lambda t: [1.01 * x for x in fair(t)], "is not right"),
        (lambda t: [x * len(t) for x in fair(t)], "is not right"),
        (lambda t: fair(t)[::-1], "is not right"),
        (lambda t: fair(t)[:1], "one number for each pass"),
    ],
)
def test_wrong_answers_to_overweight_are_refused(wrong, reason, capsys):
    exercise("check_overweight")(wrong)
    assert reason in capsys.readouterr().out
    exercise("check_overweight")(lambda t: np.array(fair(t)))
    assert capsys.readouterr().out == "ok\n"


class EarlyStop:
    """The right answer; each wrong one changes one thing."""

    resets, fixed, equal, best_counts = True, None, False, True

    def __init__(self, patience):
        self.patience, self.best = self.fixed or patience, math.inf
        self.worse, self.last = 0, math.inf

    def on_evaluate(self, trainer, row):
        loss, best = row["eval_loss"], self.best if self.best_counts else self.last
        if loss < best or (self.equal and loss == best):
            self.worse = 0 if self.resets else self.worse
        else:
            self.worse += 1
        self.best, self.last = min(self.best, loss), loss
        if self.worse >= self.patience:
            trainer.stop("no improvement")


@pytest.mark.parametrize(
    "wrong",
    [
        dict(resets=False),
        dict(fixed=2),
        dict(fixed=1),
        dict(fixed=99),
        dict(equal=True),
        dict(best_counts=False),
        dict(on_evaluate=lambda self, trainer, row: None),
        dict(on_evaluate=lambda self, trainer, row: trainer.stop()),
    ],
)
def test_wrong_early_stops_are_refused(wrong, capsys):
    check = exercise("check_early_stop", SimpleNamespace=SimpleNamespace)
    check(type("Wrong", (EarlyStop,), wrong))
    assert "stopped too" in capsys.readouterr().out
    check(EarlyStop)
    assert capsys.readouterr().out == "ok\n"


def leak(batch):
    whole = torch.zeros_like(batch["document_ids"])
    places = torch.arange(whole.shape[1]).expand_as(whole)
    return batch | {"document_ids": whole, "position_ids": places}


def sees_neighbors(model, batch, change=lambda batch: batch):
    first = batch["document_ids"] == 0
    other, found = batch | {"input_ids": batch["input_ids"].where(~first, 7)}, []
    for version in (change(batch), change(other)):
        mask = document_mask(version["document_ids"])
        ids, places = version["input_ids"], version["position_ids"]
        found.append(model(ids, mask=mask, position_ids=places))
    return not torch.allclose(found[0][~first], found[1][~first], atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda model, batch, change=None: True,
        lambda model, batch, change=None: False,
        lambda model, batch, change=None: None,
        lambda model, batch, change=None: sees_neighbors(model, batch),
        lambda model, batch, change=None: change is leak,
        lambda model, batch, change=None: bool(
            (change(batch)["document_ids"] != batch["document_ids"]).any()
        ),
        lambda model, batch, change=None: int(sees_neighbors(model, batch, change)),
    ],
)
def test_wrong_tests_of_neighbors_are_refused(wrong, capsys, tmp_path):
    data = token_file(tmp_path)

    def plain_batches(rows):
        yield next(Batches(data, rows, 64))

    def new_small(seed):
        return make_model(seed, initializer_range=0.2)

    given = dict(leak=leak, new_small=new_small, plain_batches=plain_batches)
    check = exercise("check_sees_neighbors", **given)
    check(wrong)
    assert "is not right" in capsys.readouterr().out
    check(sees_neighbors)
    assert capsys.readouterr().out == "ok\n"


# ---------------------------------------------------------------- packing, batches


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(50, 80))
def test_pack_places_each_document_once_and_no_row_overflows(lengths, context):
    rows = pack(lengths, context)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= context for row in rows)
    shortest = min(lengths)  # two rows could not have been one
    loads = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(rows) == 1 or loads[0] + loads[1] > context or shortest > context / 2


def test_a_document_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="a document of 9 tokens is longer than cont"):
        pack([3, 9, 2], 8)


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
    together, alone = next_token_loss(model, batch), []
    for row in batches.documents:
        nats = 0.0
        for i in row:
            ids, labels = (torch.from_numpy(x.astype(np.int64))[None] for x in data[i])
            places = torch.arange(ids.shape[1])[None]
            names = ("input_ids", "labels", "position_ids", "document_ids")
            values = (ids, labels, places, torch.zeros_like(ids))
            nats += next_token_loss(model, dict(zip(names, values, strict=True))).item()
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


def test_the_trainer_is_the_dozen_lines(tmp_path):
    """Each step's loss and the weights at the end, with nothing but chapter 08."""
    data, steps, rate = token_file(tmp_path), 8, 1e-2
    model, batches, plain = make_model(), Batches(token_file(tmp_path), 4, 48), []
    groups = parameter_groups(model, 0.1, 0.5)
    optimizer = AdamW(groups, lr=rate, betas=(0.9, 0.99))
    for step in range(steps):
        batch = next(batches)
        set_learning_rate(optimizer, cosine_schedule(step, steps, rate, 2, 1e-3))
        loss = next_token_loss(model, batch).sum() / (batch["labels"] != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        plain.append(loss.item())
    config = TrainingConfig(
        max_steps=steps, context_length=48, learning_rate=rate, min_learning_rate=1e-3,
        warmup_steps=2, lr_scheduler_type="cosine", precision="float32",
    )  # fmt: skip

    class Keep:
        losses = []

        def on_log(self, trainer, row):
            self.losses.append(row["loss"])

    other, parts = make_model(), [LogCallback(1), Keep()]
    done = Trainer(other, config, Batches(data, 4, 48), callbacks=parts).train()
    assert done == {"step": steps, "stopped": ""}
    assert Keep.losses == pytest.approx(plain, rel=1e-6)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_train_step_alone_is_the_loop_without_callbacks(tmp_path):
    config = TrainingConfig(max_steps=4, context_length=48, precision="float32")
    weights = []
    for visible in (True, False):
        model = make_model()
        trainer = Trainer(model, config, Batches(token_file(tmp_path), 2, 48))
        while visible and trainer.step < config.max_steps:
            trainer.train_step()
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


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
        nats += next_token_loss(model, batch).sum().item()
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

    run = make_trainer(
        tmp_path, callbacks=[Watch()], validation=0, max_steps=4, logging_steps=1,
        warmup_steps=4, learning_rate=1.0e-3, embedding_lr_scale=0.5,
    )  # fmt: skip
    run.train()
    scales = [group["lr_scale"] for group in run.trainer.optimizer.param_groups]
    assert sorted(scales) == [0.5, 1.0, 1.0]
    for step, found in enumerate(rates):
        assert found == pytest.approx([1e-3 * (step + 1) / 4 * x for x in scales])


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_schedules_start_above_0_and_reach_the_rate(kind):
    config = TrainingConfig(max_steps=100, warmup_steps=10, lr_scheduler_type=kind)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert 0 < rates[0] < rates[8] < rates[9] == max(rates) == config.learning_rate
    config = TrainingConfig(max_steps=100, warmup_steps=0, lr_scheduler_type=kind)
    assert config.learning_rate_at(0) == config.learning_rate


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

    run = make_trainer(
        tmp_path, One([48]), make_model(), validation=0, max_steps=60, save_steps=0,
        logging_steps=60, learning_rate=3e-2, gradient_accumulation_steps=1,
        lr_scheduler_type="constant",
    )  # fmt: skip
    run.train()
    batch = next(run.trainer.batches)
    assert next_token_loss(run.model, batch).sum().item() / 96 < 0.5


# ------------------------------------------------------ what a GPU asks for


def test_prefetch_hands_out_the_same_batches_and_states(tmp_path):
    data = token_file(tmp_path)
    direct, prefetch = Batches(data, 3, 48), Prefetch(Batches(data, 3, 48))
    states = []
    for _ in range(40):  # through several windows
        states.append(direct.state_dict())
        expected, found = next(direct), next(prefetch)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert direct.documents == prefetch.documents
        assert (direct.state_dict(), direct.epoch) == (
            prefetch.state_dict(),
            prefetch.epoch,
        )
    for state in (states[7], states[30], states[0]):
        direct.load_state_dict(state), prefetch.load_state_dict(state)
        assert prefetch.state_dict() == state
        assert torch.equal(next(direct)["labels"], next(prefetch)["labels"])


# ---------------------------------------------------------------- many processes


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
from minillm.support.devices import keep_freed_memory
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
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept, given, after = map(int, done.stdout.split())
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert after < given / 2


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    assert devices.keep_freed_memory() is False
