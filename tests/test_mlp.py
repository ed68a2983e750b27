"""The MLP equals transformers' own, and treats every token alone."""

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from minillm.mlp import MLP


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def gradients(output, inputs):
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype)
    return torch.autograd.grad(output.flatten() @ weights, inputs)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name, activation", [("silu", F.silu), ("gelu", F.gelu)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mlp_equals_transformers_with_gradients(bias, name, activation, dtype):
    config = LlamaConfig(
        hidden_size=14,
        intermediate_size=37,
        num_attention_heads=1,
        mlp_bias=bias,
        hidden_act=name,
    )
    theirs, ours = LlamaMLP(config).to(dtype), MLP(14, 37, bias, activation).to(dtype)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())  # strict: the same names
    x = torch.randn(2, 5, 14, dtype=dtype, requires_grad=True)
    tolerance = {"atol": 1e-5, "rtol": 1e-5}
    if dtype == torch.bfloat16:
        tolerance = {"atol": 2e-2, "rtol": 2e-2}
    out, other = ours(x), theirs(x)
    torch.testing.assert_close(out, other, **tolerance)
    mine = gradients(out, [x, *ours.parameters()])
    others = gradients(other, [x, *theirs.parameters()])
    torch.testing.assert_close(mine, others, **tolerance)


def test_every_token_is_treated_alone():
    mlp, x = MLP(6, 16), torch.randn(2, 5, 6)
    order = torch.randperm(5)
    torch.testing.assert_close(mlp(x)[:, order], mlp(x[:, order]))
    torch.testing.assert_close(mlp(x)[1, 3], mlp(x[1, 3]))


def test_the_gate_is_activated_and_the_other_branch_is_not():
    """An MLP of up, SiLU, down would pass neither of these."""
    mlp, x = MLP(6, 16), torch.randn(3, 6)
    assert sum(p.numel() for p in mlp.parameters()) == 3 * 6 * 16
    before = mlp(x)
    with torch.no_grad():
        mlp.up_proj.weight.mul_(-2)
    torch.testing.assert_close(mlp(x), -2 * before)  # linear in the up branch
    with torch.no_grad():
        mlp.gate_proj.weight.zero_()
    assert mlp(x).eq(0).all()  # a closed gate lets nothing through


def test_any_activation_can_be_passed():
    mlp, x = MLP(6, 16, activation=torch.sigmoid), torch.randn(3, 6)
    by_hand = torch.sigmoid(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)
    torch.testing.assert_close(mlp(x), by_hand @ mlp.down_proj.weight.T)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0), (4, -1)])
def test_wrong_sizes_are_named(sizes):
    with pytest.raises(ValueError, match=f"hidden_size={sizes[0]} .*={sizes[1]}"):
        MLP(*sizes)
