"""Attention lets a token look back and take what it needs from those before it."""

# Generated from notebooks/03_attention.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "causal_mask", "rotate", "Rope", "padding_mask", "document_mask", "KVCache",
    "attend", "Attention",
]  # fmt: skip

# %%
import torch
import torch.nn.functional as F
from torch import Tensor, nn


# %%
def causal_mask(
    num_queries: int, num_keys: int, device: torch.device | str | None = None
) -> Tensor:
    """Which of the S keys each of the last T queries may see: itself and all before.

    Returns a bool mask (T, S). Query t is at position S - T + t.
    """
    positions = torch.arange(num_keys, device=device)
    return positions <= positions[num_keys - num_queries :, None]  # (T, S)


# %%
def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by the angle of its position.

    x (B, H, T, D); cos, sin (T, D) or (B, T, D) from `Rope`. Halves, not neighbors,
    are paired, as in Hugging Face's Llama. Returns (B, H, T, D) in x's dtype.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)  # x rotated by 90 degrees
    return (x * cos.unsqueeze(-3) + turned * sin.unsqueeze(-3)).type_as(x)


# %%
SCALING_KEYS = {  # what rope_scaling must contain, besides rope_type
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor",
               "original_max_position_embeddings"},
}  # fmt: skip


def scale_frequencies(frequencies: Tensor, scaling: dict | None) -> Tensor:
    """Slow RoPE down for contexts longer than those of the first training.

    "linear" divides every frequency by `factor`. "llama3" (Llama 3.1) divides those
    that turn less than `low_freq_factor` times in the original context, keeps those
    that turn more than `high_freq_factor` times, and blends in between.
    """
    scaling = scaling or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in SCALING_KEYS:
        raise ValueError(f"rope_type {kind!r} is not one of {sorted(SCALING_KEYS)}")
    if missing := sorted(SCALING_KEYS[kind] - set(scaling)):
        raise ValueError(f"rope_scaling of type {kind!r} lacks {missing}")
    if kind == "default":
        return frequencies
    slowed = frequencies / scaling["factor"]
    if kind == "linear":
        return slowed
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed, 1: as it was
    return (1 - keep) * slowed + keep * frequencies


# %%
class Rope:
    """Rotary positions: the angles by which queries and keys turn (Su et al. 2021).

    Pair i of a head of size D turns by position / rope_theta^(2i / D) radians.
    `rope_scaling` is the dictionary of a Hugging Face config.json: rope_type
    "default", "linear" or "llama3". Raises ValueError for an odd head or another type.
    """

    def __init__(
        self,
        head_dim: int,
        rope_theta: float = 10000.0,
        rope_scaling: dict | None = None,
    ):
        if head_dim % 2:
            raise ValueError(f"{head_dim=} is odd, but RoPE turns pairs of numbers")
        exponents = torch.arange(0, head_dim, 2, device="cpu").float() / head_dim
        self.frequencies = scale_frequencies(1.0 / rope_theta**exponents, rope_scaling)

    def __call__(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (..., T) -> cos and sin, float32 (..., T, D)."""
        self.frequencies = self.frequencies.to(position_ids.device)  # stays float32
        angles = position_ids[..., None].float() * self.frequencies  # (..., T, D/2)
        angles = torch.cat([angles, angles], dim=-1)  # (..., T, D)
        return angles.cos(), angles.sin()


# %%
def padding_mask(attention_mask: Tensor, num_queries: int | None = None) -> Tensor:
    """Causal mask of a batch in which some positions are padding.

    attention_mask (B, S) holds 1 for tokens and 0 for padding, as in Hugging Face.
    Returns bool (B, 1, T, S) for the last T queries; padding sees only itself.
    """
    S = attention_mask.shape[1]
    T = S if num_queries is None else num_queries
    itself = torch.eye(S, dtype=torch.bool, device=attention_mask.device)[S - T :]
    visible = attention_mask.bool()[:, None, None, :] | itself  # (B, 1, T, S)
    return visible & causal_mask(T, S, attention_mask.device)


def document_mask(document_ids: Tensor) -> Tensor:
    """Causal mask of rows that hold several documents each.

    document_ids (B, T) names the document of each token. Returns bool (B, 1, T, T):
    True where the key is not later than the query and of the same document.
    """
    T = document_ids.shape[1]
    same = document_ids[:, None, :, None] == document_ids[:, None, None, :]
    return same & causal_mask(T, T, document_ids.device)


# %%
class KVCache:
    """The keys and values of one layer, kept while a text grows. For inference."""

    def __init__(self):
        self.length = 0  # S, positions filled
        self.keys = self.values = None  # (B, G, capacity, D)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, G, T, D) behind what is there; return all S so far, as views."""
        start, end = self.length, self.length + key.shape[2]
        self.keys = self._room(self.keys, key)
        self.values = self._room(self.values, value)
        self.keys[:, :, start:end], self.values[:, :, start:end] = key, value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]  # (B, G, S, D)

    def _room(self, store: Tensor | None, new: Tensor) -> Tensor:
        """`store`, moved to twice the space when `new` would not fit behind it."""
        needed = self.length + new.shape[2]
        if store is not None and needed <= store.shape[2]:
            return store
        larger = new.new_empty(*new.shape[:2], max(64, 2 * needed), new.shape[3])
        if store is not None:
            larger[:, :, : self.length] = store[:, :, : self.length]
        return larger

    def crop(self, length: int) -> None:
        """Forget everything from position `length` on."""
        if not 0 <= length <= self.length:
            raise ValueError(f"{length=} is not between 0 and {self.length}")
        self.length = length


# %%
def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax of the scaled scores (Vaswani et al. 2017, equation 1).

    query (B, H, T, D), key (B, G, S, D) with H a multiple of G. mask as in `attend`.
    Returns (B, H, T, S); every row sums to 1.
    """
    (B, H, T, D), (G, S) = query.shape, key.shape[1:3]
    folded = query.reshape(B, G, -1, D) * D**-0.5  # (B, G, H/G * T, D)
    scores = (folded @ key.mT).view(B, H, T, S)
    if mask is None:
        mask = causal_mask(T, S, query.device)
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
    return (scores + mask).softmax(-1)


def attend_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`attend` written out as two batched products around a softmax."""
    (B, H, T, D), (G, S) = query.shape, value.shape[1:3]
    weights = F.dropout(attention_weights(query, key, mask), dropout)  # (B, H, T, S)
    return (weights.view(B, G, -1, S) @ value).view(B, H, T, D)


# %%
def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Each query's weighted mean of the values it may see.

    query (B, H, T, D); key, value (B, G, S, D), G key/value heads for H query heads.
    mask, broadcast to (B, H, T, S): None is causal, with query t at position
    S - T + t; bool is True where a query may look (at least one key each); float is
    added to the scores. Returns (B, H, T, D).
    """
    reduced = query.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if query.device.type == "cpu" and reduced and torch.is_grad_enabled():
        return attend_products(query, key, value, mask, dropout)
    (H, T), (G, S) = query.shape[1:3], key.shape[1:3]
    if mask is None and 1 < T < S:
        mask = causal_mask(T, S, query.device)
    if mask is not None and G < H:  # with a mask, fused kernels want equal heads
        key, value = (x.repeat_interleave(H // G, dim=1) for x in (key, value))
    causal, grouped = mask is None and T > 1, key.shape[1] < H
    return F.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal=causal, enable_gqa=grouped
    )


# %%
def head_size(
    hidden_size: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int | None,
) -> int:
    """D, by default hidden_size / num_attention_heads; ValueError if that can't be."""
    if min(num_attention_heads, num_key_value_heads) < 1:
        raise ValueError(f"{num_attention_heads=}, {num_key_value_heads=}: too few")
    if num_attention_heads % num_key_value_heads:
        raise ValueError(
            f"{num_attention_heads=} must be a multiple of {num_key_value_heads=}, "
            "so that heads share evenly"
        )
    if head_dim is None and hidden_size % num_attention_heads:
        raise ValueError(
            f"{hidden_size=} is not a multiple of {num_attention_heads=}; "
            "change one or set head_dim"
        )
    return head_dim or hidden_size // num_attention_heads


# %%
class Attention(nn.Module):
    """Causal self-attention with grouped key/value heads, as in Llama and Qwen3.

    `q_norm`, `k_norm`: modules applied to each head (D) before the rotation (Qwen3).
    `num_key_value_heads` of None gives every query head its own, `head_dim` of None
    is hidden_size / num_attention_heads. Raises ValueError where heads do not divide.
    """

    def __init__(
        self,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = False,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        H, G = num_attention_heads, num_key_value_heads
        G = H if G is None else G
        self.head_dim = head_size(hidden_size, H, G, head_dim)
        self.dropout = dropout
        width, key_width = H * self.head_dim, G * self.head_dim
        self.q_proj = nn.Linear(hidden_size, width, bias=bias)
        self.k_proj = nn.Linear(hidden_size, key_width, bias=bias)
        self.v_proj = nn.Linear(hidden_size, key_width, bias=bias)
        self.o_proj = nn.Linear(width, hidden_size, bias=bias)
        self.q_norm, self.k_norm = q_norm or nn.Identity(), k_norm or nn.Identity()

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, heads * D) -> (B, heads, T, D)"""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def forward(
        self,
        hidden_states: Tensor,  # (B, T, E)
        rotation: tuple[Tensor, Tensor] | None = None,  # cos, sin of the T positions
        mask: Tensor | None = None,  # as in `attend`
        cache: KVCache | None = None,
    ) -> Tensor:
        query = self.split_heads(self.q_proj(hidden_states))  # (B, H, T, D)
        key = self.split_heads(self.k_proj(hidden_states))  # (B, G, T, D)
        value = self.split_heads(self.v_proj(hidden_states))  # (B, G, T, D)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, G, S, D)
        dropout = self.dropout if self.training else 0.0
        out = attend(query, key, value, mask, dropout)  # (B, H, T, D)
        return self.o_proj(out.transpose(1, 2).flatten(2))  # (B, T, E)
