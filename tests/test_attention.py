"""Attention equals PyTorch's and transformers' own, and keeps its promises."""

import ast
import inspect
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3RMSNorm

from minillm import attention
from minillm.attention import (
    Attention,
    KVCache,
    Rope,
    attend,
    attend_products,
    attention_weights,
    causal_mask,
    document_mask,
    padding_mask,
    rotate,
)

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FORMS = [attend, attend_products]
HEADS = [(6, 6), (6, 2), (6, 1)]  # every head its own keys, grouped, one for all


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_heads(H, G, T, S, B=2, D=5, dtype=torch.float32):
    shapes = (B, H, T, D), (B, G, S, D), (B, G, S, D)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def gradients(output, inputs):
    """Gradients of a weighted sum, so that every output element counts."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype)
    return torch.autograd.grad(output.flatten() @ weights, inputs)


def pairs(ours, theirs):
    return zip(ours, theirs, strict=True)


def assert_same(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=1e-5)


# Masks


def test_causal_mask_puts_the_last_query_at_the_last_key():
    assert causal_mask(2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert causal_mask(3, 3).equal(torch.ones(3, 3, dtype=torch.bool).tril())


def test_padding_mask_hides_padding_except_from_itself():
    mask = padding_mask(torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]))
    assert mask.shape == (2, 1, 4, 4)
    wanted = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask[0, 0].int().tolist() == wanted
    assert mask[1, 0].equal(causal_mask(4, 4))
    assert padding_mask(torch.tensor([[0, 1, 1]]), 2).int().tolist() == [
        [[[0, 1, 0], [0, 1, 1]]]
    ]


def test_document_mask_is_causal_within_each_document():
    mask = document_mask(torch.tensor([[0, 0, 1, 1]]))
    wanted = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask.shape == (1, 1, 4, 4) and mask[0, 0].int().tolist() == wanted


# attend


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("H, G", HEADS)
@pytest.mark.parametrize("T, S", [(7, 7), (3, 7), (1, 7)])
@pytest.mark.parametrize("kind", ["causal", "bool", "float", "per head"])
def test_attend_equals_torch_sdpa_with_gradients(form, H, G, T, S, kind):
    query, key, value = inputs = random_heads(H, G, T, S)
    causal = causal_mask(T, S)
    mask = {
        "causal": None,
        "bool": (torch.rand(2, 1, T, S) > 0.5) | (torch.arange(S) == 0),
        "float": torch.randn(T, S),
        "per head": torch.randn(2, H, T, S),
    }[kind]
    theirs = F.scaled_dot_product_attention(
        query,
        key.repeat_interleave(H // G, 1),
        value.repeat_interleave(H // G, 1),
        attn_mask=causal if mask is None else mask,
    )
    ours = form(query, key, value, mask)
    assert ours.shape == (2, H, T, 5)
    assert_same(ours, theirs)
    for mine, other in pairs(gradients(ours, inputs), gradients(theirs, inputs)):
        assert_same(mine, other)


@pytest.mark.parametrize("H, G", HEADS)
@pytest.mark.parametrize("learning", [True, False])
def test_attend_in_bfloat16_is_right_within_its_resolution(H, G, learning):
    inputs = random_heads(H, G, 6, 6, dtype=torch.bfloat16)
    exact = attend(*(x.detach().float() for x in inputs))
    with torch.set_grad_enabled(learning):
        ours = attend(*inputs)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.float(), exact, atol=2e-2, rtol=2e-2)


def test_attend_under_autocast_agrees_with_float32():
    inputs = random_heads(6, 2, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = attend(*inputs)
    torch.testing.assert_close(ours.float(), attend(*inputs), atol=2e-2, rtol=2e-2)


@settings(max_examples=25, deadline=None)
@given(
    G=st.integers(1, 3),
    R=st.integers(1, 3),
    T=st.integers(1, 6),
    past=st.integers(0, 5),
)
def test_weights_sum_to_one_and_never_see_the_future(G, R, T, past):
    query, key, _ = random_heads(G * R, G, T, past + T)
    weights = attention_weights(query, key)
    assert_same(weights.sum(-1), torch.ones(2, G * R, T))
    assert (weights[..., ~causal_mask(T, past + T)] == 0).all()


def test_dropout_is_applied_to_the_weights_and_keeps_the_mean():
    query, key, _ = random_heads(2, 2, 40, 40)
    ones = torch.ones_like(key)
    for form in FORMS:
        out = form(query, key, ones, dropout=0.5)
        assert abs(out.mean().item() - 1) < 0.1 and out.std() > 0.1


# RoPE


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize(
    "scaling", [None, LLAMA3, {"rope_type": "linear", "factor": 4.0}]
)
def test_rope_equals_transformers(theta, scaling):
    parameters = {"rope_theta": theta, **(scaling or {"rope_type": "default"})}
    config = LlamaConfig(
        hidden_size=48,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters=parameters,
    )
    position_ids = torch.randint(0, 512, (2, 9))
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), position_ids)
    ours = Rope(12, theta, scaling)(position_ids)
    assert ours[0].shape == (2, 9, 12) and ours[0].dtype == torch.float32
    assert_same(ours, theirs)


def test_rotation_keeps_lengths_and_leaves_position_zero_alone():
    x = torch.randn(2, 3, 5, 8)
    turned = rotate(x, *Rope(8)(torch.arange(5)))
    assert_same(turned.norm(dim=-1), x.norm(dim=-1))
    assert turned[:, :, 0].equal(x[:, :, 0])  # fails if cos and sin are swapped
    assert rotate(x.bfloat16(), *Rope(8)(torch.arange(5))).dtype == torch.bfloat16


@settings(max_examples=25, deadline=None)
@given(m=st.integers(0, 500), n=st.integers(0, 500), shift=st.integers(0, 500))
def test_scores_depend_on_the_distance_only(m, n, shift):
    rope, (query, key) = Rope(16), torch.randn(2, 1, 1, 1, 16)

    def score(m, n):
        turned = [
            rotate(x, *rope(torch.tensor([p]))) for x, p in ((query, m), (key, n))
        ]
        return (turned[0] * turned[1]).sum()

    assert_same(score(m, n), score(m + shift, n + shift), atol=2e-3)


def test_rope_stays_float32_in_a_bfloat16_model_and_out_of_the_state():
    model = Attention(16, 2)
    model.rope = Rope(8)
    model.to(torch.bfloat16)
    assert model.rope.frequencies.dtype == torch.float32
    assert not any("rope" in name for name in model.state_dict())


# The cache


def run(module, x, rope, chunks, mask=None):
    """The sequence in pieces through a cache."""
    cache, outputs = KVCache(), []
    for start, end in pairwise(chunks):
        rotation = rope(torch.arange(start, end))
        part = None if mask is None else mask[..., start:end, :end]
        outputs.append(module(x[:, start:end], rotation, part, cache))
        assert cache.length == end
    return torch.cat(outputs, dim=1)


@torch.no_grad()
@settings(max_examples=20, deadline=None)
@given(cuts=st.sets(st.integers(1, 10)), G=st.sampled_from([1, 2, 6]))
def test_cache_in_any_chunks_equals_the_full_pass(cuts, G):
    module, rope, x = Attention(30, 6, G, head_dim=4), Rope(4), torch.randn(2, 11, 30)
    full = module(x, rope(torch.arange(11)))
    assert_same(run(module, x, rope, [0, *sorted(cuts), 11]), full)


def test_cache_gives_the_same_gradients_when_it_learns():
    module, rope, x = Attention(12, 3), Rope(4), torch.randn(1, 5, 12)
    parameters = list(module.parameters())
    full = gradients(module(x, rope(torch.arange(5))), parameters)
    cached = gradients(run(module, x, rope, [0, 5]), parameters)
    for ours, theirs in pairs(cached, full):
        assert_same(ours, theirs)


@torch.no_grad()
def test_cache_grows_beyond_its_first_room_and_can_be_cropped():
    cache, key, value = KVCache(), *torch.randn(2, 1, 2, 300, 4)
    for t in range(300):
        keys, values = cache.append(key[:, :, t : t + 1], value[:, :, t : t + 1])
    assert keys.equal(key) and values.equal(value) and cache.length == 300
    cache.crop(10)
    keys, _ = cache.append(key[:, :, 10:12], value[:, :, 10:12])
    assert keys.equal(key[:, :, :12])
    with pytest.raises(ValueError, match="length=13"):
        cache.crop(13)


# The module


def llama_pair(kind, G, **options):
    """transformers' attention and ours with the same random weights."""
    config = {"llama": LlamaConfig, "qwen3": Qwen3Config}[kind](
        hidden_size=42,
        num_attention_heads=6,
        num_key_value_heads=G,
        head_dim=8,
        attn_implementation="eager",
        **options,
    )
    norms = {}
    if kind == "qwen3":
        norms = {
            n: Qwen3RMSNorm(8, eps=config.rms_norm_eps) for n in ("q_norm", "k_norm")
        }
    theirs = {"llama": LlamaAttention, "qwen3": Qwen3Attention}[kind](config, 0)
    ours = Attention(42, 6, G, head_dim=8, bias=config.attention_bias, **norms)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    missing = ours.load_state_dict(theirs.state_dict())
    assert not missing.missing_keys and not missing.unexpected_keys
    return ours, theirs


def outputs_and_gradients(module, x, mask=None):
    """(B, T, E) and the gradients of the input and of every parameter."""
    cos, sin = Rope(8)(torch.arange(x.shape[1])[None])
    if isinstance(module, Attention):
        out = module(x, (cos, sin), mask)
    else:
        T = x.shape[1]
        mask = causal_mask(T, T) if mask is None else mask
        added = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, -torch.inf)
        out, _ = module(x, (cos.type_as(x), sin.type_as(x)), added.view(-1, 1, T, T))
    return [out, *gradients(out, [x, *module.parameters()])]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("G, bias", [(6, False), (2, True), (1, False)])
@pytest.mark.parametrize("masked", [False, True])
def test_module_equals_transformers_with_gradients(kind, G, bias, masked):
    ours, theirs = llama_pair(kind, G, attention_bias=bias)
    x = torch.randn(2, 9, 42, requires_grad=True)
    mask = document_mask(torch.randint(0, 3, (2, 9)).sort(1)[0]) if masked else None
    results = outputs_and_gradients(ours, x, mask)
    for mine, other in pairs(results, outputs_and_gradients(theirs, x, mask)):
        scale = other.abs().max().clamp(min=1)
        assert_same(mine / scale, other / scale)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_module_in_bfloat16_is_as_near_the_truth_as_transformers(kind):
    ours, theirs = llama_pair(kind, 2)
    x = torch.randn(2, 9, 42, requires_grad=True)
    truth = outputs_and_gradients(theirs, x)
    x = x.detach().bfloat16().requires_grad_()
    mine = outputs_and_gradients(ours.bfloat16(), x)
    other = outputs_and_gradients(theirs.bfloat16(), x)
    errors = [
        sum((y - e).norm() / e.norm() for e, y in pairs(truth, results)).item()
        for results in (mine, other)
    ]
    assert errors[0] <= 1.2 * errors[1], errors


def test_changing_the_future_changes_nothing_before_it():
    module, rotation = Attention(24, 4, 2), Rope(6)(torch.arange(8))
    x = torch.randn(1, 8, 24)
    changed = x.clone()
    changed[:, 5:] = torch.randn(3, 24)
    before, after = module(x, rotation), module(changed, rotation)
    assert before[:, :5].equal(after[:, :5])
    assert not before[:, 5:].isclose(after[:, 5:]).all(-1).any()


def test_left_padding_equals_single_rows():
    module, rope = Attention(24, 4, 2), Rope(6)
    rows = torch.randn(1, 3, 24), torch.randn(1, 7, 24)
    batch = torch.cat(
        [F.pad(row, (0, 0, 7 - row.shape[1], 0), value=9) for row in rows]
    )
    real = torch.tensor([[0] * 4 + [1] * 3, [1] * 7])
    position_ids = (real.cumsum(1) - 1).clamp(min=0)
    out = module(batch, rope(position_ids), padding_mask(real))
    assert out.isfinite().all()
    for i, row in enumerate(rows):
        T = row.shape[1]
        assert_same(out[i : i + 1, -T:], module(row, rope(torch.arange(T))))
    mask = padding_mask(real)
    cached = run_batch(module, batch, rope(position_ids), mask, [0, 5, 6, 7])
    assert_same(cached[real.bool()], out[real.bool()])


def run_batch(module, x, rotation, mask, chunks):
    cache, outputs = KVCache(), []
    with torch.no_grad():
        for start, end in pairwise(chunks):
            part = tuple(t[:, start:end] for t in rotation)
            outputs.append(
                module(x[:, start:end], part, mask[..., start:end, :end], cache)
            )
    return torch.cat(outputs, dim=1)


def test_packed_rows_equal_separate_ones():
    module, rope = Attention(24, 4, 2), Rope(6)
    parts = [torch.randn(1, length, 24) for length in (4, 1, 6)]
    document_ids = torch.tensor([[0] * 4 + [1] + [2] * 6])
    position_ids = torch.cat([torch.arange(p.shape[1]) for p in parts])[None]
    packed = module(
        torch.cat(parts, dim=1), rope(position_ids), document_mask(document_ids)
    )
    alone = [module(p, rope(torch.arange(p.shape[1]))) for p in parts]
    assert_same(packed, torch.cat(alone, dim=1))


def test_dropout_works_in_training_only():
    module, x = Attention(24, 4, dropout=0.5), torch.randn(1, 6, 24)
    assert not module(x).equal(module(x))
    module.eval()
    assert module(x).equal(module(x))


def test_one_token_at_any_position_runs():
    module = Attention(24, 4, 1)
    assert module(torch.randn(3, 1, 24), Rope(6)(torch.tensor([5]))).shape == (3, 1, 24)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: Attention(10, 3), "hidden_size=10 .* num_attention_heads=3"),
        (lambda: Attention(12, 4, 3), "num_attention_heads=4 .* num_key_value_heads=3"),
        (lambda: Attention(12, 4, 0), "num_key_value_heads=0"),
        (lambda: Attention(12, 0), "num_attention_heads=0"),
        (lambda: Rope(7), "head_dim=7"),
        (lambda: Rope(8, 1e4, {"rope_type": "yarn", "factor": 2}), "rope_type 'yarn'"),
        (lambda: Rope(8, 1e4, {"rope_type": "linear"}), "rope_scaling .*'factor'"),
    ],
)
def test_wrong_arguments_are_named_at_construction(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_forward_is_at_most_twelve_statement_lines():
    source = inspect.getsource(Attention.forward)
    function = ast.parse(source.strip() if source[0] != " " else "if 1:\n" + source)
    node = next(n for n in ast.walk(function) if isinstance(n, ast.FunctionDef))
    lines = {n.lineno for s in node.body for n in ast.walk(s) if hasattr(n, "lineno")}
    assert len(lines) <= 12


def test_module_imports_only_torch():
    found = {
        (n.module if isinstance(n, ast.ImportFrom) else n.names[0].name).split(".")[0]
        for n in ast.walk(ast.parse(inspect.getsource(attention)))
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert found <= {"torch", "collections"}
