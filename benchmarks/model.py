"""How fast is the course's model beside others of the same shape, and how large?

    python benchmarks/model.py                     the tiny preset, one thread
    python benchmarks/model.py --preset minimind-26m --rows 2 --rounds 5
    python benchmarks/model.py --compile           the same through torch.compile

    python benchmarks/model.py --choices           what our own choices give

Beside ours stand transformers' Llama with the same weights, and a GPT written here
from nanoGPT's published structure (LayerNorm, learned positions, one fused product for
query, key and value, GELU, a 4 E wide MLP), which has about as many parameters.
The models take turns in every round, and each round gives a ratio to ours; the median
of the ratios is printed, because a ratio moves less than a time on a busy machine.
"""

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from minillm.attention import Attention, attend, document_mask, rotate  # noqa: E402
from minillm.decoder_layer import RMSNorm  # noqa: E402
from minillm.mlp import MLP  # noqa: E402
from minillm.transformer import ModelConfig, Transformer  # noqa: E402


class GPTLayer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.c_attn(self.ln_1(x)).chunk(3, dim=-1)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """The structure of nanoGPT's model at a given shape."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        V, E = config.vocab_size, config.hidden_size
        self.wte = nn.Embedding(V, E)
        self.wpe = nn.Embedding(config.max_position_embeddings, E)
        self.layers = nn.ModuleList(
            GPTLayer(E, config.num_attention_heads)
            for _ in range(config.num_hidden_layers)
        )
        self.ln_f = nn.LayerNorm(E)
        self.lm_head = nn.Linear(E, V, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.ln_f(x))


class TheirLlama(nn.Module):
    """transformers' Llama, returning logits."""

    def __init__(self, ours: Transformer):
        super().__init__()
        fields = ours.config.to_dict() | {"pad_token_id": None}
        for name in ("architectures", "dropout"):
            fields.pop(name)
        self.model = LlamaForCausalLM(LlamaConfig(**fields))
        state = {
            name if name.startswith("lm_head") else f"model.{name}": tensor
            for name, tensor in ours.state_dict().items()
        }
        self.model.load_state_dict(state)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, use_cache=False).logits


class Packed(nn.Module):
    """Ours as the course trains it: rows of several documents behind a mask."""

    def __init__(self, ours: Transformer, rows: int, context: int):
        super().__init__()
        self.model = ours
        documents = torch.arange(context).expand(rows, -1) // max(1, context // 3)
        self.mask = document_mask(documents)
        self.places = torch.arange(context) % max(1, context // 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids, self.mask, self.places)


class HandNorm(nn.Module):
    """RMSNorm as chapter 05 writes it out, instead of PyTorch's."""

    def __init__(self, norm: RMSNorm):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (exact * scale).to(x.dtype)


class FusedAttention(nn.Module):
    """Attention with query, key and value in one product."""

    def __init__(self, attention: Attention):
        super().__init__()
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        self.widths = [part.out_features for part in parts]
        self.head_dim, self.o_proj = attention.head_dim, attention.o_proj
        self.weight = nn.Parameter(torch.cat([part.weight.data for part in parts]))

    def forward(self, x: Tensor, rotation=None, mask=None, cache=None) -> Tensor:
        parts = F.linear(x, self.weight).split(self.widths, -1)
        q, k, v = (p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts)
        out = attend(rotate(q, *rotation), rotate(k, *rotation), v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class FusedMLP(nn.Module):
    """The MLP with gate and up in one product."""

    def __init__(self, mlp: MLP):
        super().__init__()
        both = mlp.gate_proj.weight.data, mlp.up_proj.weight.data
        self.weight, self.down_proj = nn.Parameter(torch.cat(both)), mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self.weight).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


def choices(ours: Transformer) -> dict[str, nn.Module]:
    """Ours with one of its choices taken back or changed, all with equal weights."""
    by_hand, fused = copy.deepcopy(ours), copy.deepcopy(ours)
    for layer in by_hand.layers:
        layer.input_layernorm = HandNorm(layer.input_layernorm)
        layer.post_attention_layernorm = HandNorm(layer.post_attention_layernorm)
    for layer in fused.layers:
        layer.self_attn, layer.mlp = (
            FusedAttention(layer.self_attn),
            FusedMLP(layer.mlp),
        )
    return {"ours": ours, "norms by hand": by_hand, "fused products": fused}


def loss_of(model: nn.Module, ids: Tensor, precision: str) -> Tensor:
    medium = "medium" if precision == "medium" else "highest"
    torch.set_float32_matmul_precision(medium)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(ids[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())


def saved_bytes(model: nn.Module, ids: Tensor, precision: str) -> int:
    """What the forward pass keeps for the backward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), (storage.nbytes(), tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model, ids, precision)
    return sum(size for place, (size, _) in kept.items() if place not in own)


def forward(model: nn.Module, ids: Tensor, precision: str) -> None:
    with torch.no_grad():
        loss_of(model, ids, precision)


def training(model: nn.Module, ids: Tensor, precision: str) -> None:
    loss_of(model, ids, precision).backward()
    model.zero_grad()


def seconds(work: Callable[[], None], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def compare(models: dict, ids: Tensor, act: Callable, precision: str, rounds: int):
    """Median seconds of every model, and median ratio of ours to it."""
    for model in models.values():
        act(model, ids, precision)  # warm
    once = seconds(lambda: act(models["ours"], ids, precision), 1)
    repeats = max(1, round(0.15 / once))
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            spent = seconds(lambda m=model: act(m, ids, precision), repeats)
            times[name].append(spent)
    for name, spent in times.items():
        ratios = [b / a for a, b in zip(times["ours"], spent, strict=True)]
        yield name, statistics.median(spent), statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--choices", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    config = ModelConfig.from_preset(arguments.preset)
    ours = Transformer(config).train()
    models = {
        "ours": ours,
        "ours, packed rows": Packed(ours, arguments.rows, arguments.context),
        "transformers Llama": TheirLlama(ours).train(),
        "nanoGPT's structure": GPT(config).train(),
    }
    if arguments.choices:
        models = choices(ours)
    ids = torch.randint(0, config.vocab_size, (arguments.rows, arguments.context + 1))
    same = [name for name in models if "packed" not in name and "nano" not in name]
    difference = max((models[n](ids) - ours(ids)).abs().max().item() for n in same)
    print(
        f"{arguments.preset}, {arguments.rows} x {arguments.context} tokens, "
        f"{arguments.threads} thread(s); logits differ by {difference:.0e}"
    )
    if arguments.compile:
        models = {name: torch.compile(model) for name, model in models.items()}
    print(f"{'':34}{'parameters':>11}{'ms':>9}{'speed':>7}{'MB kept':>9}")
    for precision in ("float32", "medium", "bf16"):
        for act in (forward, training):
            for name, spent, ratio in compare(
                models, ids, act, precision, arguments.rounds
            ):
                model = models[name]
                size = sum(p.numel() for p in model.parameters())
                kept = ""
                if act is training and not arguments.compile:
                    kept = f"{saved_bytes(model, ids, precision) / 1e6:.1f}"
                print(
                    f"{precision:8}{act.__name__:9}{name:20}"[:37].ljust(37)
                    + f"{size:>8,}{spent * 1e3:9.1f}{1 / ratio:7.2f}{kept:>9}"
                )
    print("speed: of each model as a multiple of ours")


if __name__ == "__main__":
    main()
