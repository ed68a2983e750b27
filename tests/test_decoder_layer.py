"""minillm.decoder_layer against transformers' Llama, and its doors walked through."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from minillm.attention import Attention, KVCache, Rope, padding_mask
from minillm.decoder_layer import DecoderLayer, RMSNorm
from minillm.mlp import MLP

B, T, E, F_, H, G, D = 2, 7, 36, 40, 6, 2, 10
EPS = 1e-6


def close(ours, theirs, tolerance=1e-5):
    difference = (ours.double() - theirs.double()).abs().max().item()
    assert difference <= tolerance, f"largest difference {difference:.2e}"


def build(dropout=0.0):
    return DecoderLayer(E, Attention(E, H, G, D), MLP(E, F_), EPS, dropout)


@pytest.fixture
def pair():
    """Our layer and transformers', with the same random weights, norms included."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=E, intermediate_size=F_, num_attention_heads=H,
        num_key_value_heads=G, head_dim=D, rms_norm_eps=EPS,
        attn_implementation="eager",
    )  # fmt: skip
    ours, theirs = build(), LlamaDecoderLayer(config, layer_idx=0)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.3)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same
    return ours, theirs, LlamaRotaryEmbedding(config)


def causal(dtype=torch.float32):
    return torch.full((1, 1, T, T), torch.finfo(dtype).min, dtype=dtype).triu(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rms_norm_equals_llama(dtype):
    torch.manual_seed(0)
    ours, theirs = RMSNorm(37, EPS).to(dtype), LlamaRMSNorm(37, EPS).to(dtype)
    with torch.no_grad():
        ours.weight.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 5, 37).to(dtype) * 4
    step = 2**-7 * theirs(x).abs().max().item() if dtype == torch.bfloat16 else 1e-6
    assert ours(x).dtype == dtype
    close(ours(x), theirs(x), step)


def test_rms_norm_keeps_the_dtype_of_its_input_under_float32_weights():
    x = torch.randn(2, 8).bfloat16()
    assert RMSNorm(8)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_rms_norm_ignores_the_scale_of_its_input(scale):
    x = torch.randn(4, 64) + 0.5
    norm = RMSNorm(64, eps=1e-12)
    close(norm(x * scale), norm(x))
    close(norm(x).square().mean(-1), torch.ones(4))


def test_rms_norm_of_zeros_is_zero_and_has_a_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    out = RMSNorm(8)(x)
    out.sum().backward()
    assert not out.any() and x.grad.isfinite().all()


def test_layer_equals_llama_with_gradients(pair):
    ours, theirs, rotary = pair
    x = torch.randn(B, T, E, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    positions = torch.arange(T)
    out = ours(x, Rope(D)(positions))
    expected = theirs(
        y,
        attention_mask=causal(),
        position_embeddings=rotary(y, positions[None]),
    )
    close(out, expected, 1e-5)
    weight = torch.randn(B, T, E)
    (out * weight).mean().backward()
    (expected * weight).mean().backward()
    close(x.grad, y.grad)
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, wanted[name].grad)


def test_layer_equals_llama_in_bfloat16_within_its_resolution(pair):
    ours, theirs, rotary = pair
    x, positions = torch.randn(B, T, E), torch.arange(T)
    exact = ours(x, Rope(D)(positions))
    ours, theirs, x = ours.bfloat16(), theirs.bfloat16(), x.bfloat16()
    out = ours(x, Rope(D)(positions))
    expected = theirs(
        x,
        attention_mask=causal(torch.bfloat16),
        position_embeddings=rotary(x, positions[None]),
    )
    step = 2**-8 * exact.abs().max().item()
    assert out.dtype == torch.bfloat16
    close(out, exact, 6 * step)
    close(out, expected, 6 * step)


def test_mask_and_cache_reach_attention(pair):
    layer, _, _ = pair
    x, rope = torch.randn(B, T, E), Rope(D)
    whole = layer(x, rope(torch.arange(T)))
    cache, parts = KVCache(), []
    for start, end in ((0, 3), (3, 4), (4, T)):
        rotation = rope(torch.arange(start, end))
        parts.append(layer(x[:, start:end], rotation, cache=cache))
    close(torch.cat(parts, 1), whole)
    keep = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * T])
    places = (keep.cumsum(-1) - 1).clamp(min=0)
    padded = layer(x, rope(places), padding_mask(keep, T))
    alone = layer(x[:1, 2:], rope(torch.arange(T - 2)))
    close(padded[:1, 2:], alone)
    close(padded[1], whole[1])


class Experts(nn.Module):
    """Another MLP, through the same door: each token goes to one of two experts."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(E, 2)
        self.experts = nn.ModuleList([MLP(E, F_), MLP(E, 3)])

    def forward(self, hidden_states):
        share = self.router(hidden_states).softmax(-1)  # (B, T, 2)
        outputs = torch.stack([expert(hidden_states) for expert in self.experts], -1)
        best = F.one_hot(share.argmax(-1), 2)
        return (outputs * (share * best)[:, :, None]).sum(-1)


def test_another_mlp_can_be_passed_in():
    torch.manual_seed(0)
    layer = DecoderLayer(E, Attention(E, H, G, D), Experts(), EPS)
    x = torch.randn(B, T, E)
    out = layer(x)
    assert out.shape == x.shape
    out.square().mean().backward()
    assert all(p.grad is not None for p in layer.mlp.parameters())
    assert "mlp.experts.1.down_proj.weight" in layer.state_dict()


def test_another_attention_can_be_passed_in():
    class Mean(nn.Module):
        def forward(self, x, rotation=None, mask=None, cache=None):
            return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]

    assert DecoderLayer(E, Mean(), MLP(E, F_))(torch.randn(B, T, E)).shape == (B, T, E)


def test_branches_that_give_zero_leave_the_stream_alone():
    layer = build()
    for branch in (layer.self_attn.o_proj, layer.mlp.down_proj):
        nn.init.zeros_(branch.weight)
    x = torch.randn(B, T, E)
    assert torch.equal(layer(x), x)


def test_each_half_has_a_norm_of_its_own_and_reads_the_stream():
    """The two mistakes of chapter 05's clinic: a shared norm, a normed residual."""
    layer = build()
    assert layer.input_layernorm is not layer.post_attention_layernorm
    names = {name for name, _ in layer.named_parameters() if "norm" in name}
    assert names == {"input_layernorm.weight", "post_attention_layernorm.weight"}
    with torch.no_grad():
        layer.post_attention_layernorm.weight.zero_()  # silences the MLP, nothing else
    x = torch.randn(B, T, E) * 50  # far from norm 1, so that a normed residual shows
    close(layer(x), x + layer.self_attn(layer.input_layernorm(x)), 1e-4)


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    layer, x = build(dropout=0.5), torch.randn(B, T, E)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
