"""The MLP turns what attention has gathered into something new, token by token."""

# Generated from notebooks/04_mlp.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "MLP",
]  # fmt: skip

# %%
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


# %%
class MLP(nn.Module):
    """Gated MLP, SwiGLU for the default activation (Shazeer 2020, equation 6).

    down(activation(gate(x)) * up(x)), for every token alone: (..., E) -> (..., E),
    F numbers wide inside. Raises ValueError for a size below 1.
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        bias: bool = False,
        activation: Callable[[Tensor], Tensor] = F.silu,
    ):
        super().__init__()
        if min(hidden_size, intermediate_size) < 1:
            raise ValueError(
                f"{hidden_size=} and {intermediate_size=} must be positive"
            )
        self.activation = activation
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, hidden_states: Tensor) -> Tensor:  # (..., E)
        gate = self.activation(self.gate_proj(hidden_states))  # (..., F)
        return self.down_proj(gate * self.up_proj(hidden_states))  # (..., E)
