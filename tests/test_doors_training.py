"""The doors of the loop: other losses, batches, parts. None needs a change in it.

Each is walked through, checked against arithmetic done by hand, and stopped and resumed
to the same bits.
"""

import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_run import make_model, make_trainer, result, token_file, tokenizer

from minillm.attention import document_mask
from minillm.optimization import cross_entropy
from minillm.pretraining import (
    Batches,
    LogCallback,
    Trainer,
    TrainingConfig,
    collate,
    next_token_loss,
)
from minillm.relay import Checkpoints

CONTEXT, STEPS = 48, 6


class StopAt:
    """A callback that stops after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop("a test")


def make(batches, model=None, **parts):
    """A trainer; what is not settings of the loop are parts."""
    names = TrainingConfig.__dataclass_fields__
    changes = {k: parts.pop(k) for k in list(parts) if k in names}
    config = TrainingConfig(**dict(
        max_steps=STEPS, per_device_train_batch_size=2, context_length=CONTEXT,
        warmup_steps=2, precision="float32", learning_rate=1e-2,
    ) | changes)  # fmt: skip
    return Trainer(model or make_model(dropout=0.1), config, batches, **parts)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def train(trainer, *callbacks):
    trainer.callbacks += callbacks
    trainer.train()
    return weights(trainer)


def check_resume(start, folder):
    """Stopped after step 3 and resumed by a new trainer: the bits of one unbroken."""
    unbroken = train(start())
    first = start()
    broken = train(first, StopAt(3), Checkpoints(folder, tokenizer()))
    assert first.step == 3 and not torch.equal(broken, unbroken)
    second, checkpoints = start(), Checkpoints(folder, tokenizer())
    assert checkpoints.resume(second).name == "checkpoint-000003"
    assert torch.equal(train(second, checkpoints), unbroken)
    return second


def mean_loss(loss, count, model, batches):
    with torch.no_grad():
        pairs = [(loss(model.eval(), x).sum().item(), count(x)) for x in batches]
    return sum(total for total, _ in pairs) / sum(number for _, number in pairs)


# ------------------------------------------------- two answers: another collation


class Pairs:
    """Chosen and rejected answers, and what a reference model makes of both."""

    def __init__(self, count=40):
        random = np.random.default_rng(0)
        sizes = random.integers(4, 11, (count, 2))
        self.rows = [
            [random.integers(1, 250, size + 1) for size in pair] for pair in sizes
        ]
        self.reference = random.normal(-30, 1, (count, 2)).astype(np.float32)
        self.lengths = sizes.sum(1)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        (chosen, rejected), reference = self.rows[i], self.reference[i]
        return chosen[:-1], chosen[1:], rejected[:-1], rejected[1:], reference


def collate_pairs(rows, context):
    """Both answers of a pair are documents of the same row: numbers 2 n and 2 n + 1."""
    documents = [[answer for x in row for answer in (x[:2], x[2:4])] for row in rows]
    most = max(map(len, rows))
    reference = torch.zeros(len(rows), most, 2)
    for r, row in enumerate(rows):
        for p, example in enumerate(row):
            reference[r, p] = torch.from_numpy(example[4])
    real = torch.arange(most) < torch.tensor([[len(row)] for row in rows])
    return collate(documents, context) | {"reference": reference, "real": real}


def pair_loss(model, batch, beta=0.1):
    """Direct preference optimization: -log sigmoid of the margin, (rows,)."""
    ids, reference = batch["document_ids"], batch["reference"]
    logits = model(
        batch["input_ids"], mask=document_mask(ids), position_ids=batch["position_ids"]
    )
    nats = cross_entropy(logits, batch["labels"], reduction="none")
    last = 2 * reference.shape[1]  # collects the padding
    totals = nats.new_zeros(len(ids), last + 1)
    totals = totals.scatter_add(1, ids.where(ids >= 0, last), nats)
    gains = -totals[:, :last].view_as(reference) - reference
    margins = gains[..., 0] - gains[..., 1]
    return -(F.logsigmoid(beta * margins) * batch["real"]).sum(1)


def count_pairs(batch):
    return int(batch["real"].sum())


def pair_batches(rows=2):
    return Batches(Pairs(), rows, CONTEXT, collate=collate_pairs)


def test_the_loss_of_packed_pairs_is_that_of_each_pair_alone():
    model, batches, data = make_model().double().eval(), pair_batches(), Pairs()
    batch = next(batches)
    packed = pair_loss(model, batch).tolist()
    for row, found in zip(batches.documents, packed, strict=True):
        expected = 0.0
        for i in row:
            scores = []
            for ids in data.rows[i]:
                ids = torch.from_numpy(ids)[None]
                logps = model(ids[:, :-1]).log_softmax(-1)
                scores.append(logps.gather(-1, ids[:, 1:, None]).sum().item())
            gains = np.array(scores) - data.reference[i]
            expected += np.log1p(np.exp(-0.1 * (gains[0] - gains[1])))
        assert found == pytest.approx(expected, rel=1e-6)
    assert count_pairs(batch) == sum(map(len, batches.documents))


def test_pairs_are_learned_and_resume(tmp_path):
    def start():
        return make(pair_batches(), loss=pair_loss, count=count_pairs)

    check_resume(start, tmp_path)
    exam = [next(pair_batches(8)) for _ in range(2)]
    trainer = make(
        pair_batches(), make_model(), loss=pair_loss, count=count_pairs, max_steps=30
    )
    before = mean_loss(pair_loss, count_pairs, trainer.model, exam)
    trainer.train()
    after = mean_loss(pair_loss, count_pairs, trainer.model, exam)
    assert after < before - 0.1


def test_the_count_divides_by_pairs():
    seen = []

    class Watch:
        def on_log(self, trainer, row):
            seen.append(row)

    model = make_model()
    batch = next(pair_batches())
    expected = pair_loss(model, batch).sum().item() / count_pairs(batch)
    parts = dict(loss=pair_loss, count=count_pairs, max_steps=1)
    train(make(pair_batches(), model, **parts), LogCallback(1), Watch())
    assert seen[0]["loss"] == pytest.approx(expected, rel=1e-6)
    assert seen[0]["tokens"] == count_pairs(batch)  # what `count` counts


def test_a_whole_run_in_a_folder_takes_the_same_parts(tmp_path):
    parts = dict(loss=pair_loss, count=count_pairs, collate=collate_pairs)
    settings = dict(validation=0, parts=parts, logging_steps=6)
    assert make_trainer(tmp_path / "a", Pairs(), **settings).train()["step"] == 12
    short = make_trainer(tmp_path / "b", Pairs(), callbacks=[StopAt(5)], **settings)
    assert short.train()["step"] == 5
    assert make_trainer(tmp_path / "b", Pairs(), **settings).train()["step"] == 12
    assert result(tmp_path / "a") == result(tmp_path / "b")
    first, last = [row["loss"] for row in result(tmp_path / "a")[0]]
    assert last < first


# --------------------------------------------------- soft targets: another dataset


class Taught:
    """Documents with a teacher's probabilities (T, V) of what comes next."""

    def __init__(self, lengths, teacher):
        self.lengths, self.teacher = lengths, teacher.eval()

    def __len__(self):
        return len(self.lengths)

    @torch.no_grad()
    def __getitem__(self, i):
        ids = np.random.default_rng(i).integers(1, 250, self.lengths[i] + 1)
        logits = self.teacher(torch.from_numpy(ids[:-1])[None])[0]
        return ids[:-1], ids[1:], logits.softmax(-1).numpy()


def collate_taught(rows, context):
    batch = collate([[x[:2] for x in row] for row in rows], context)
    size = rows[0][0][2].shape[-1]
    batch["targets"] = torch.zeros(len(rows), context, size)
    for r, row in enumerate(rows):
        parts = torch.from_numpy(np.concatenate([x[2] for x in row]))
        batch["targets"][r, : len(parts)] = parts
    return batch


def soft_loss(model, batch):
    """The Kullback-Leibler divergence from the teacher, in nats, of each row."""
    ids, targets = batch["document_ids"], batch["targets"]
    logits = model(
        batch["input_ids"], mask=document_mask(ids), position_ids=batch["position_ids"]
    )
    return F.kl_div(logits.log_softmax(-1), targets, reduction="none").sum((1, 2))


def taught_batches(teacher, rows=2):
    data = Taught([9, 30, 22, 40, 13, 17, 5, 28], teacher)
    return Batches(data, rows, CONTEXT, collate=collate_taught)


def test_soft_targets_are_learned_and_resume(tmp_path):
    teacher = make_model(seed=7)

    def start():
        return make(taught_batches(teacher), loss=soft_loss)

    check_resume(start, tmp_path)
    batch = next(taught_batches(teacher))
    assert soft_loss(teacher, batch).abs().max() < 1e-3  # the teacher has no loss
    model = make_model()
    before = soft_loss(model.eval(), batch).sum().item()
    make(taught_batches(teacher), model, loss=soft_loss, max_steps=30).train()
    assert 0 < soft_loss(model.eval(), batch).sum().item() < 0.9 * before


def test_the_parts_of_a_long_document_keep_their_targets():
    data = Taught([100], make_model(seed=7, max_position_embeddings=128))
    batches = Batches(data, 1, CONTEXT, collate=collate_taught)
    ids, labels, targets = data[0]
    for _ in range(3):
        batch = next(batches)
        used = batch["document_ids"][0] >= 0
        found = batch["input_ids"][0, used].numpy()
        start = next(s for s in (0, 48, 96) if (ids[s : s + len(found)] == found).all())
        here = slice(start, start + len(found))
        assert (batch["labels"][0, used].numpy() == labels[here]).all()
        torch.testing.assert_close(
            batch["targets"][0, used], torch.from_numpy(targets[here])
        )


# ------------------------------------------------------------- one more loss term


def loss_with_z(model, batch, weight=1e-2):
    """The next token's loss, and a term that keeps log Z near 0, as PaLM's has it."""
    seen = []
    hook = model.register_forward_hook(lambda _, inputs, logits: seen.append(logits))
    nats = next_token_loss(model, batch)
    hook.remove()
    z = seen[0].logsumexp(-1) * (batch["labels"] != -100)
    return nats + weight * (z**2).sum(1)


def test_an_added_term_changes_the_gradient_and_resumes(tmp_path):
    data = token_file(tmp_path)

    def start(loss=loss_with_z):
        return make(Batches(data, 2, CONTEXT), loss=loss)

    with_z = check_resume(start, tmp_path / "run")
    plain = start(next_token_loss)
    assert not torch.equal(train(plain), weights(with_z))
    no_weight = start(functools.partial(loss_with_z, weight=0.0))
    torch.testing.assert_close(train(no_weight), weights(plain))
    batch = next(Batches(data, 2, CONTEXT))
    sizes = []
    for trainer in (with_z, plain):
        logits = trainer.model.eval()(batch["input_ids"])
        sizes.append(logits.logsumexp(-1).pow(2).mean().item())
    assert sizes[0] < sizes[1]


# ------------------------------------------------------------------------ callbacks


def test_a_callback_adds_columns_for_those_behind_it(tmp_path):
    class Add:
        def on_log(self, trainer, row):
            row["norm of the embedding"] = (
                trainer.model.embed_tokens.weight.norm().item()
            )

    class Keep:
        rows, ended = [], 0

        def on_log(self, trainer, row):
            self.rows.append(row)

        def on_train_end(self, trainer):
            Keep.ended = trainer.step

    batches = Batches(token_file(tmp_path), 2, CONTEXT)
    train(make(batches), LogCallback(2), Add(), Keep())
    assert [row["step"] for row in Keep.rows] == [2, 4, 6] and Keep.ended == STEPS
    assert all(row["norm of the embedding"] > 0 for row in Keep.rows)


def test_a_stop_returns_and_train_continues_to_the_same_bits(tmp_path):
    data = token_file(tmp_path)
    unbroken = train(make(Batches(data, 2, CONTEXT)))
    trainer = make(Batches(data, 2, CONTEXT), callbacks=[StopAt(2)])
    assert trainer.train() == {"step": 2, "stopped": "a test"}
    assert trainer.train() == {"step": STEPS, "stopped": ""}
    assert torch.equal(weights(trainer), unbroken)


# ---------------------------------------------------------------- batches of any kind


def drawn(data, seed):
    return next(Batches(data, 2, CONTEXT, seed))


def test_a_plain_generator_trains_and_has_no_state(tmp_path):
    data = token_file(tmp_path)

    def endless():
        for seed in range(100):
            yield drawn(data, seed)

    trainer = make(endless())
    assert trainer.train()["step"] == STEPS
    assert trainer.state_dict()["batches"] == {}
    other = make(endless())
    other.load_state_dict(trainer.state_dict())
    assert other.step == STEPS


def test_batches_that_follow_from_the_step_resume_without_a_state(tmp_path):
    """As batches do that a model writes itself: they are a function of the step."""
    data = token_file(tmp_path)

    def start():
        def endless():
            while True:
                yield drawn(data, trainer.step)

        trainer = make(endless())
        return trainer

    check_resume(start, tmp_path / "run")


def test_a_generator_that_yields_a_loss_without_value_is_stopped(tmp_path):
    def endless():
        while True:
            yield drawn(token_file(tmp_path), 0)

    def broken(model, batch):
        return next_token_loss(model, batch) * torch.nan

    trainer = make(endless(), loss=broken)
    before = weights(trainer)
    with pytest.raises(FloatingPointError, match="step 1: .* in 2 of 2 rows$"):
        trainer.train()
    assert torch.equal(weights(trainer), before)


# --------------------------------------------------------------------- other parts


def test_another_optimizer_resumes(tmp_path):
    data = token_file(tmp_path)

    def start():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return make(Batches(data, 2, CONTEXT), model, optimizer=optimizer)

    trainer = check_resume(start, tmp_path / "run")
    assert isinstance(trainer.optimizer, torch.optim.SGD)


def test_processes_and_wrap_are_parts(tmp_path):
    """Two processes with the same rows have the gradients of one."""

    class Twice:
        rank, world_size = 0, 2

        def sum(self, *values):
            return [2 * value for value in values]

        def wrap(self, model):
            for p in model.parameters():  # DDP averages over the processes
                p.register_hook(lambda gradient: gradient * 2 / 2)
            return model

    data, calls = token_file(tmp_path), []

    def wrap(model):
        calls.append(model)
        return model

    alone = make(Batches(data, 2, CONTEXT), make_model(), wrap=wrap)
    both = make(Batches(data, 2, CONTEXT), make_model(), processes=Twice())
    torch.testing.assert_close(train(alone), train(both))
    assert len(calls) == 1 and both.progress.tokens == 2 * alone.progress.tokens


# -------------------------------------------------------------------------- float16


def test_float16_trains_skips_an_overflow_and_resumes(tmp_path):
    data = token_file(tmp_path)

    def start():
        return make(Batches(data, 2, CONTEXT), precision="fp16")

    trainer = check_resume(start, tmp_path / "run")
    exact = train(make(Batches(data, 2, CONTEXT)))
    assert trainer.loss_scale.value == 65536.0
    assert 0 < (weights(trainer) - exact).norm() < 0.2 * exact.norm()
    trainer = start()
    trainer.loss_scale.value = 2.0**40  # no float16 holds such gradients
    before = weights(trainer)
    trainer.train_step()
    assert torch.equal(weights(trainer), before)
    assert trainer.step == 1 and trainer.loss_scale.value == 2.0**39
