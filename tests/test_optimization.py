import copy
import functools
import itertools
import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn

from minillm.optimization import (
    CANDIDATES,
    PRECISIONS,
    SCHEDULES,
    SGD,
    AdamW,
    LossScale,
    advise,
    autocast,
    clip_grad_norm,
    cosine_schedule,
    cross_entropy,
    fastest_precision,
    learning_rate_sweep,
    linear_schedule,
    parameter_groups,
    precision_speeds,
    set_learning_rate,
)
from minillm.pretraining import Trainer, TrainingConfig
from minillm.transformer import ModelConfig, Transformer

FALLING = [cosine_schedule, linear_schedule]


def small_net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Embedding(11, 7), nn.Linear(7, 13), nn.LayerNorm(13), nn.Linear(13, 11)
    )


def small_transformer(**changes):
    torch.manual_seed(0)
    sizes = dict(vocab_size=19, hidden_size=12, intermediate_size=20)
    heads = dict(num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1)
    return Transformer(ModelConfig(**sizes, **heads, **changes))


def batch(step, rows=5, width=6, vocab=11):
    random = torch.Generator().manual_seed(step)
    return torch.randint(0, vocab, (rows, width), generator=random)


def loss_of(model, ids, **options):
    return cross_entropy(model(ids), ids.roll(-1, 1), **options)


def train(model, optimizer, steps, start=0, clip=clip_grad_norm):
    for step in range(start, steps):
        set_learning_rate(optimizer, cosine_schedule(step, 60, 1e-2, 5))
        optimizer.zero_grad()
        loss_of(model, batch(step)).backward()
        clip(model.parameters(), 0.5)
        optimizer.step()


def same(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs)


# ---- cross_entropy


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 0, 6])
@pytest.mark.parametrize("scale", [1, 30, 1e4])
def test_cross_entropy_equals_pytorch(reduction, ignore_index, scale):
    torch.manual_seed(1)
    mine = (scale * torch.randn(3, 5, 7)).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    labels = torch.randint(0, 7, (3, 5))
    labels[0, 2] = labels[2, 4] = ignore_index
    got = cross_entropy(mine, labels, ignore_index, reduction)
    wanted = F.cross_entropy(
        theirs.view(-1, 7),
        labels.view(-1),
        ignore_index=ignore_index,
        reduction=reduction,
    )
    torch.testing.assert_close(got.flatten(), wanted.flatten())
    (got.sum() * 1.7).backward()
    (wanted.sum() * 1.7).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_cross_entropy_where_nothing_is_counted_is_zero():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_cross_entropy_of_huge_logits_is_finite():
    logits = torch.tensor([[3e38, -3e38, 0.0]])
    assert cross_entropy(logits, torch.tensor([0])) == 0
    assert cross_entropy(logits, torch.tensor([2])).isfinite()


def test_cross_entropy_works_in_float32():
    torch.manual_seed(0)
    logits = 5 * torch.randn(40, 300)
    labels = torch.randint(0, 300, (40,))
    rough = logits.bfloat16()
    assert cross_entropy(rough, labels).dtype == torch.float32
    assert torch.equal(
        cross_entropy(rough, labels), cross_entropy(rough.float(), labels)
    )


def test_cross_entropy_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(6,\)"):
        cross_entropy(torch.zeros(2, 3, 5), torch.zeros(6, dtype=torch.long))
    with pytest.raises(ValueError, match="average"):
        cross_entropy(torch.zeros(3, 5), torch.zeros(3).long(), reduction="average")
    with pytest.raises((IndexError, RuntimeError)):
        cross_entropy(torch.zeros(3, 5), torch.full((3,), 5))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=2, max_size=8), st.floats(-1e3, 1e3))
def test_cross_entropy_ignores_a_constant_and_is_a_surprise(logits, shift):
    row = torch.tensor([logits], dtype=torch.float32)
    every = torch.arange(row.shape[1])
    rows = row.expand(len(every), -1)
    losses = cross_entropy(rows, every, reduction="none")
    assert (losses >= 0).all()
    assert math.isclose(losses.neg().exp().sum().item(), 1, rel_tol=1e-4)
    moved = cross_entropy(rows + shift, every, reduction="none")
    torch.testing.assert_close(losses, moved, rtol=1e-3, atol=1e-3)


# ---- optimizers


@pytest.mark.parametrize("foreach", [True, False])
def test_adamw_equals_pytorch_to_the_last_digit(foreach):
    mine, theirs = small_net(), small_net()
    a = AdamW(parameter_groups(mine, 0.1, 0.5), lr=1e-2)
    b = torch.optim.AdamW(
        parameter_groups(theirs, 0.1, 0.5), lr=1e-2, betas=(0.9, 0.95), foreach=foreach
    )
    train(mine, a, 60)
    train(theirs, b, 60, clip=nn.utils.clip_grad_norm_)
    assert same(mine, theirs)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        for key in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(a.state[p][key], b.state[q][key])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_equals_pytorch_to_the_last_digit(momentum, weight_decay):
    mine, theirs = small_net(), small_net()
    options = dict(lr=1e-2, momentum=momentum)
    a = SGD(parameter_groups(mine, weight_decay), **options)
    b = torch.optim.SGD(parameter_groups(theirs, weight_decay), **options)
    train(mine, a, 60)
    train(theirs, b, 60)
    assert same(mine, theirs)


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_gradients_are_not_changed_and_missing_ones_are_skipped(kind):
    model = small_net()
    options = dict(momentum=0.9) if kind is SGD else {}
    optimizer = kind(model.parameters(), lr=1e-2, weight_decay=0.1, **options)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model, batch(0)).backward()
        model[3].bias.grad = None
        before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        bias = model[3].bias.clone()
        optimizer.step()
        after = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(map(torch.equal, before, after))
        assert torch.equal(bias, model[3].bias)


def test_a_parameter_that_joins_late_has_its_own_age():
    mine, theirs = small_net(), small_net()
    a = AdamW(mine.parameters(), lr=1e-2)
    b = torch.optim.AdamW(
        theirs.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1
    )
    for model in (mine, theirs):
        model[3].requires_grad_(False)
    train(mine, a, 4)
    train(theirs, b, 4)
    for model in (mine, theirs):
        model[3].requires_grad_(True)
    train(mine, a, 8, 4)
    train(theirs, b, 8, 4)
    assert same(mine, theirs)
    assert a.state[mine[3].weight]["step"] == 4


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_state_through_safetensors_continues_bit_for_bit(kind):
    options = dict(momentum=0.9) if kind is SGD else {}
    whole, first = small_net(), small_net()
    train(whole, kind(parameter_groups(whole), lr=1e-2, **options), 20)
    optimizer = kind(parameter_groups(first), lr=1e-2, **options)
    train(first, optimizer, 11)
    state = optimizer.state_dict()
    tensors = {f"{i}.{k}": v for i, s in state["state"].items() for k, v in s.items()}
    stored = load(save(tensors | {f"w.{k}": v for k, v in first.state_dict().items()}))

    second = small_net(seed=9)
    second.load_state_dict({k[2:]: v for k, v in stored.items() if k[:2] == "w."})
    resumed = kind(parameter_groups(second), lr=1e-2, **options)
    numbers = sorted({key.split(".")[0] for key in tensors}, key=int)
    state["state"] = {
        int(i): {k.split(".")[1]: stored[k] for k in tensors if k.split(".")[0] == i}
        for i in numbers
    }
    resumed.load_state_dict(state)
    train(second, resumed, 20, 11)
    assert same(whole, second)


def test_adamw_state_is_three_plain_tensors():
    model = small_net()
    optimizer = AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    for p, state in optimizer.state.items():
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == p.shape
        assert state["step"].item() == 2


@pytest.mark.parametrize(
    "wrong",
    [dict(lr=-1.0), dict(betas=(1.0, 0.9)), dict(eps=-1.0), dict(weight_decay=-0.1)],
)
def test_adamw_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match="not in the range"):
        AdamW(small_net().parameters(), **{"lr": 1e-2, **wrong})


def test_decay_of_adamw_is_decoupled_and_of_sgd_is_not():
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    a, b = AdamW([p], 0.1, weight_decay=0.5), SGD([q], 0.1, weight_decay=0.5)
    for tensor in (p, q):
        tensor.grad = torch.tensor([100.0])
    a.step()
    b.step()
    assert math.isclose(p.item(), 1 - 0.1 * 0.5 - 0.1, rel_tol=1e-6)
    assert math.isclose(q.item(), 1 - 0.1 * (100 + 0.5), rel_tol=1e-6)


# ---- groups and rates


@pytest.mark.parametrize("tied", [True, False])
def test_groups_hold_every_parameter_once(tied):
    model = small_transformer(tie_word_embeddings=tied, attention_bias=True)
    groups = {group["name"]: group for group in parameter_groups(model, 0.3, 0.5)}
    assert list(groups) == ["matrices", "vectors", "embeddings"]
    listed = [p for group in groups.values() for p in group["params"]]
    assert len({id(p) for p in listed}) == len(listed) == len(list(model.parameters()))
    assert [p is model.embed_tokens.weight for p in groups["embeddings"]["params"]] == [
        True
    ]
    assert all(p.dim() == 1 for p in groups["vectors"]["params"])
    assert any(p is model.lm_head.weight for p in groups["matrices"]["params"]) != tied
    assert [g["weight_decay"] for g in groups.values()] == [0.3, 0.0, 0.0]
    assert [g["lr_scale"] for g in groups.values()] == [1.0, 1.0, 0.5]


def test_frozen_parameters_are_in_no_group():
    model = small_transformer()
    model.embed_tokens.requires_grad_(False)
    assert [g["name"] for g in parameter_groups(model)] == ["matrices", "vectors"]


def test_set_learning_rate_uses_the_scale():
    optimizer = AdamW(parameter_groups(small_transformer(), 0.1, 0.25), lr=1.0)
    set_learning_rate(optimizer, 0.8)
    assert [group["lr"] for group in optimizer.param_groups] == [0.8, 0.8, 0.2]
    plain = AdamW(small_net().parameters(), lr=1.0)
    set_learning_rate(plain, 0.8)
    assert plain.param_groups[0]["lr"] == 0.8


@pytest.mark.parametrize("schedule", FALLING)
@settings(max_examples=80, deadline=None)
@given(
    max_steps=st.integers(1, 300),
    warmup_steps=st.integers(0, 400),
    share=st.floats(0, 1),
)
def test_rates_are_never_zero_and_within_bounds(
    schedule, max_steps, warmup_steps, share
):
    low = share * 1e-3
    rates = [schedule(s, max_steps, 1e-3, warmup_steps, low) for s in range(max_steps)]
    assert all(0 < rate <= 1e-3 * (1 + 1e-12) for rate in rates)
    assert all(rate >= low * (1 - 1e-12) for rate in rates[warmup_steps:])
    risen = rates[:warmup_steps]
    assert risen == sorted(risen)
    fallen = rates[max(0, warmup_steps - 1) :]
    assert fallen == sorted(fallen, reverse=True)


@pytest.mark.parametrize("schedule", FALLING)
def test_schedule_landmarks(schedule):
    assert schedule(0, 100, 2.0) == 2.0  # no warm-up: nothing is divided by it
    assert schedule(0, 100, 2.0, 10) == pytest.approx(0.2)
    assert schedule(9, 100, 2.0, 10) == schedule(10, 100, 2.0, 10) == 2.0
    assert schedule(55, 100, 2.0, 10, 1.0) == pytest.approx(1.5)
    assert schedule(100, 100, 2.0, 10, 0.5) == schedule(500, 100, 2.0, 10, 0.5) == 0.5
    assert schedule(0, 1, 2.0) == schedule(0, 1, 2.0, 1) == 2.0
    assert schedule(3, 4, 2.0, 8) == 1.0  # shorter than its warm-up


@settings(max_examples=80, deadline=None)
@given(
    step=st.integers(0, 500),
    max_steps=st.integers(1, 300),
    high=st.floats(1e-6, 10),
    warmup_steps=st.integers(0, 400),
    share=st.floats(0, 1),
)
def test_schedules_keep_their_bits(step, max_steps, high, warmup_steps, share):
    """One function for all shapes: the numbers of the formulas written out."""
    low = high * share
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    rising = high * (step + 1) / warmup_steps if step < warmup_steps else None
    left = {
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "linear": 1 - done,
        "constant": 1.0,
    }
    assert set(SCHEDULES) == set(left)
    for name, share_left in left.items():
        wanted = low + (high - low) * share_left if rising is None else rising
        assert SCHEDULES[name](step, max_steps, high, warmup_steps, low) == wanted


def test_schedules_by_name():
    assert SCHEDULES["cosine"] is cosine_schedule
    assert SCHEDULES["linear"] is linear_schedule
    constant = SCHEDULES["constant"]
    assert [constant(s, 6, 0.4, 4) for s in range(6)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    )
    assert constant(0, 6, 0.4) == constant(900, 6, 0.4) == 0.4
    assert constant(5, 6, 0.4, 0, 0.1) == pytest.approx(0.4)  # it never falls


def test_cosine_equals_pytorch():
    optimizer = torch.optim.SGD(small_net().parameters(), lr=3.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, 0.5)
    for step in range(41):
        mine = cosine_schedule(step, 40, 3.0, 0, 0.5)
        assert math.isclose(mine, optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        theirs.step()


# ---- clipping and accumulation


@pytest.mark.parametrize("max_norm", [1e-3, 0.5, 1e6])
def test_clipping_equals_pytorch(max_norm):
    mine, theirs = small_net(), small_net()
    for model in (mine, theirs):
        loss_of(model, batch(0)).backward()
    got = clip_grad_norm(mine.parameters(), max_norm)
    wanted = nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    assert torch.equal(got, wanted)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_clipping_nothing_and_not_a_number():
    assert clip_grad_norm(small_net().parameters(), 1.0) == 0
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.tensor([math.nan, 1.0])
    assert clip_grad_norm([p], 1.0).isnan()


def test_accumulated_gradients_equal_those_of_the_large_batch():
    ids = batch(3, rows=8)
    labels = ids.roll(-1, 1)
    labels[:3, 2:] = -100  # the parts hold different numbers of tokens
    large, parts = small_net(), small_net()
    cross_entropy(large(ids), labels).backward()
    total = (labels != -100).sum()
    for rows in range(0, 8, 2):
        part = cross_entropy(
            parts(ids[rows : rows + 2]), labels[rows : rows + 2], reduction="sum"
        )
        (part / total).backward()
    for p, q in zip(large.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


# ---- precision


@pytest.mark.parametrize("precision", PRECISIONS)
def test_autocast_puts_the_setting_back(precision):
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), autocast("cpu", precision):
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        assert torch.is_autocast_enabled("cpu") == (half is not None)
        wanted = "medium" if precision == "medium" else "highest"
        assert torch.get_float32_matmul_precision() == wanted
        product = torch.ones(3, 3) @ torch.ones(3, 3)
        assert product.dtype == (half or torch.float32)
        raise KeyError
    assert torch.get_float32_matmul_precision() == before
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_names_the_choices():
    with pytest.raises(ValueError, match="'fp8'.*float32, medium, bf16, fp16"):
        with autocast("cpu", "fp8"):
            pass


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_gradients_and_loss_stay_float32(precision):
    model = small_transformer()
    exact = copy.deepcopy(model)
    with autocast("cpu", precision):
        loss = loss_of(model, batch(0, vocab=19))
        loss.backward()
    loss_of(exact, batch(0, vocab=19)).backward()
    assert loss.dtype == torch.float32
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        assert p.dtype == p.grad.dtype == torch.float32
        assert (p.grad - q.grad).norm() <= 0.02 * q.grad.norm() + 1e-6


def test_backward_inside_autocast_equals_backward_behind_it():
    inside, behind = small_transformer(), small_transformer()
    with autocast("cpu", "bf16"):
        loss_of(inside, batch(0, vocab=19)).backward()
        loss = loss_of(behind, batch(0, vocab=19))
    loss.backward()
    for p, q in zip(inside.parameters(), behind.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


# ---- float16 and the scale of its loss


def tiny_gradient(scale: float) -> torch.Tensor:
    """The gradient of a weight through a product in float16: 2e-8 times 1."""
    weight = torch.ones(1, 1, requires_grad=True)
    with autocast("cpu", "fp16"):
        product = torch.ones(1, 1) @ weight
        (product.float().sum() * 2e-8 * scale).backward()
    return weight.grad


def test_a_gradient_that_vanishes_in_float16_survives_with_a_scale():
    assert tiny_gradient(1.0) == 0
    scale = LossScale("fp16")
    weight = nn.Parameter(torch.ones(1, 1))
    weight.grad = tiny_gradient(scale.value)
    assert weight.grad.dtype == torch.float32
    scale.unscale([weight, nn.Parameter(torch.ones(2))])  # the second has none
    assert weight.grad.item() == pytest.approx(2e-8, rel=1e-3)


def test_overflow_halves_the_scale_and_good_steps_double_it():
    scale = LossScale("fp16", growth_interval=3)
    found = []
    for finite in (True, True, False, True, True, True, True, True, True, False):
        assert scale.update(finite)
        found.append(scale.value / 65536)
    assert found == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1, 2, 1]
    assert not tiny_gradient(1e14).isfinite().all()  # what an overflow looks like


def test_the_scale_moves_as_that_of_pytorch():
    torch.manual_seed(0)
    options = dict(init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5)
    theirs = torch.amp.GradScaler("cpu", growth_interval=4, **options)
    ours = LossScale("fp16", growth_interval=4)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for good in (torch.rand(200) < 0.8).tolist():
        theirs.scale(weight.sum() * (1.0 if good else math.inf)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        if ours.value == 1 and not good:
            break  # where ours gives up
        assert ours.update(good)
        assert ours.value == theirs.get_scale()


def test_a_scale_that_cannot_help_says_so():
    """At a factor of 1, or without one, what is not finite is no overflow."""
    scale = LossScale("fp16")
    assert sum(scale.update(False) for _ in range(99)) == 16  # 65,536 is 2 to the 16th
    assert scale.value == 1.0
    for precision in ("float32", "medium", "bf16"):
        plain = LossScale(precision, growth_interval=2)
        assert plain.value == 1.0 and not plain.update(False)
        assert [plain.update(True) for _ in range(5)] == [True] * 5
        assert plain.value == 1.0
        p = nn.Parameter(torch.ones(1))
        p.grad = torch.full((1,), 3.0)
        plain.unscale([p])
        assert p.grad == 3.0


def test_the_scale_survives_a_round_trip():
    first = LossScale("fp16", growth_interval=3)
    for finite in (False, False, True, True):
        first.update(finite)
    second = LossScale("fp16", growth_interval=3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for finite in (True, True, False, True):
        assert first.update(finite) == second.update(finite)
        assert first.state_dict() == second.state_dict()
    other = LossScale("bf16")  # a run that is resumed in another format
    other.load_state_dict(first.state_dict())
    assert other.value == 1.0
    fresh = LossScale("fp16")
    fresh.load_state_dict({})  # of a run from before there was a scale
    assert fresh.state_dict() == LossScale("fp16").state_dict()


def train_in(precision: str, steps: int = 60) -> tuple[list[float], LossScale]:
    model = small_transformer(initializer_range=0.1)
    optimizer = AdamW(parameter_groups(model), lr=1.0)
    scale, losses = LossScale(precision), []
    if scale.dynamic:
        scale.value = 2.0**30  # so that the first steps overflow
    for step in range(steps):
        set_learning_rate(optimizer, cosine_schedule(step, steps, 1e-2, 5))
        optimizer.zero_grad()
        with autocast("cpu", precision):
            loss = loss_of(model, batch(step % 4, vocab=19))
            (scale.value * loss).backward()
        scale.unscale(model.parameters())
        finite = clip_grad_norm(model.parameters(), 1.0).isfinite().item()
        assert scale.update(finite)
        if finite:
            optimizer.step()
        losses.append(loss.item())
    return losses, scale


def test_training_in_float16_follows_float32():
    exact, half = train_in("float32")[0], train_in("fp16")
    losses, scale = half
    assert scale.value < 2.0**30
    assert exact[-1] < exact[0] - 0.5
    assert losses[-1] == pytest.approx(exact[-1], abs=0.3)


def endless_batches():
    """The same four batches again and again, as the trainer takes them."""
    for step in itertools.count():
        yield {"ids": batch(step % 4, vocab=19)}


def trainer_in(precision: str, steps: int = 60) -> Trainer:
    rates = dict(learning_rate=1e-2, warmup_steps=5, lr_scheduler_type="cosine")
    config = TrainingConfig(max_steps=steps, precision=precision, **rates)
    return Trainer(
        small_transformer(initializer_range=0.1),
        config,
        endless_batches(),
        loss=lambda model, b: loss_of(model, b["ids"], reduction="none").sum(1),
        count=lambda b: b["ids"].numel(),
    )


def test_the_trainer_learns_in_float16():
    exact, half = trainer_in("float32"), trainer_in("fp16")
    half.loss_scale.value = 2.0**30  # the first steps overflow
    before = copy.deepcopy(half.model)
    half.train_step()
    assert half.step == 1 and same(before, half.model)  # skipped, not failed
    assert half.loss_scale.value == 2.0**29
    exact.train()
    half.train()
    assert half.step == 60 and not same(before, half.model)
    ids = batch(0, vocab=19)
    losses = [loss_of(run.model.eval(), ids).item() for run in (exact, half)]
    assert losses[1] == pytest.approx(losses[0], abs=0.3)
    assert losses[0] < loss_of(before, ids).item() - 0.5
    state = half.state_dict()["loss_scale"]
    assert state == half.loss_scale.state_dict() and state["value"] < 2.0**29


def test_probe_leaves_the_model_and_the_random_state_alone():
    model = small_transformer(dropout=0.1)
    before, state = copy.deepcopy(model), torch.get_rng_state()
    speeds = precision_speeds(model, rows=2, context=8, rounds=2)
    assert set(speeds) == set(CANDIDATES)
    assert list(speeds.values()) == sorted(speeds.values(), reverse=True)
    assert same(before, model)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "speeds, wanted",
    [((1.0, 1.05, 1.08), "float32"), ((1, 2, 2.1), "medium"), ((1, 1, 3), "bf16")],
)
def test_advice_prefers_the_more_exact(monkeypatch, speeds, wanted):
    found = dict(zip(CANDIDATES, speeds, strict=True))
    monkeypatch.setattr(
        "minillm.optimization.precision_speeds", lambda model, **settings: found
    )
    assert fastest_precision(nn.Identity()) == wanted


@pytest.mark.slow
def test_probe_times_the_fastest_once_more_under_compile(monkeypatch):
    """Traced, but not handed to a C++ compiler: the chapter does that."""
    traced = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", traced)
    model = small_transformer()
    before = copy.deepcopy(model)
    speeds = precision_speeds(model, rows=2, context=8, rounds=1, compiled=True)
    (added,) = set(speeds) - set(CANDIDATES)
    assert added.removesuffix(", compiled") in CANDIDATES
    assert speeds[added] > 0 and advise(speeds) in speeds
    assert same(before, model) and all(p.grad is None for p in model.parameters())


def test_probe_goes_on_where_the_compiler_fails(monkeypatch):
    class Broken(torch.nn.Linear):
        def forward(self, x):
            raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda model: Broken(1, 1))
    model = small_transformer()
    speeds = precision_speeds(model, rows=2, context=8, rounds=1, compiled=True)
    assert set(speeds) == set(CANDIDATES)


@pytest.mark.parametrize(
    "compiled, wanted", [(250, "bf16, compiled"), (215, "bf16"), (20, "bf16")]
)
def test_advice_to_compile_must_pay_for_the_wait(compiled, wanted):
    speeds = {"bf16, compiled": compiled, "bf16": 200, "medium": 90, "float32": 100}
    assert advise(speeds) == wanted


def test_probe_takes_the_best_of_rounds_in_turn(monkeypatch):
    """The second turn of bf16 is its best; what warms up does not count."""
    seconds = {"float32": [0.1, 8, 9], "medium": [0.1, 5, 6], "bf16": [0.1, 4, 2]}
    order = []

    def scripted(model, ids, precision):
        order.append(precision)
        return seconds[precision].pop(0)

    monkeypatch.setattr("minillm.optimization.training_seconds", scripted)
    speeds = precision_speeds(small_transformer(), rows=2, context=5, rounds=2)
    assert order == list(CANDIDATES) * 3
    assert speeds == {"bf16": 10 / 2, "medium": 10 / 5, "float32": 10 / 8}


# ---- learning-rate finder


def test_sweep_raises_the_rate_evenly_and_stops_when_it_breaks():
    model = small_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    found = learning_rate_sweep(
        optimizer, lambda step: loss_of(model, batch(step)), 1e-4, 1e4, 41
    )
    rates = [rate for rate, _ in found]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[1] / rates[0] == pytest.approx(10 ** (8 / 40))
    assert len(found) < 41
    assert min(loss for _, loss in found) < found[0][1]
