"""Attention and MLP, each behind a norm, write into one stream: a decoder layer."""

# Generated from notebooks/05_decoder_layer.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "RMSNorm", "DecoderLayer",
]  # fmt: skip

# %%
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.attention import KVCache


# %%
class RMSNorm(nn.Module):
    """Divide every vector by its root mean square, then scale each entry.

    Zhang and Sennrich 2019, equation 4. (..., E) -> (..., E) in the input's dtype;
    the mean square itself is taken in float32.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:  # (..., E)
        weight = self.weight.to(hidden_states.dtype)
        return F.rms_norm(hidden_states, weight.shape, weight, self.eps)


# %%
class DecoderLayer(nn.Module):
    """Attention, then MLP, each normed before and added to the stream after.

    The pre-norm layer of Llama. `self_attn` and `mlp` are any modules that take
    what `Attention` and `MLP` take; both map (B, T, E) -> (B, T, E). `norm` builds
    both norms from (E, eps): GPT-2 passes nn.LayerNorm.
    """

    def __init__(
        self,
        hidden_size: int,
        self_attn: nn.Module,
        mlp: nn.Module,
        rms_norm_eps: float = 1e-5,
        dropout: float = 0.0,
        norm: Callable[[int, float], nn.Module] = RMSNorm,
    ):
        super().__init__()
        self.input_layernorm = norm(hidden_size, rms_norm_eps)
        self.self_attn = self_attn
        self.post_attention_layernorm = norm(hidden_size, rms_norm_eps)
        self.mlp = mlp
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        hidden_states: Tensor,  # (B, T, E)
        rotation: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        normed = self.input_layernorm(hidden_states)
        attended = self.self_attn(normed, rotation, mask, cache)
        hidden_states = hidden_states + self.dropout(attended)
        changed = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.dropout(changed)  # (B, T, E)
