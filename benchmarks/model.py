"""How fast is the course's model beside others of the same shape, and how large?

    python benchmarks/model.py                     the tiny preset, one thread
    python benchmarks/model.py --preset minimind-26m --rows 2 --rounds 5
    python benchmarks/model.py --parts memory  one of the tables only
    python benchmarks/model.py --save              and keep them in model.json

Beside ours are transformers' Llama with the same weights, and three models written
here from the published structure of others: litgpt's and minimind's Llama, also with
the same weights, and nanoGPT's GPT, which has about as many parameters. The models take
turns in every round, and each round gives a ratio; the median of the ratios counts,
because a ratio moves less than a time on a busy machine. Times are those of the
processor, so `--threads` above 1 counts all of them. Peak memory is measured in a
process of its own for each model. Chapter 06 prints the stored tables.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

import minillm.attention as attention_module  # noqa: E402
from minillm.attention import (  # noqa: E402
    Attention,
    attend,
    attend_products,
    document_mask,
    rotate,
)
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


class RepeatedAttention(nn.Module):
    """Attention as minimind and litgpt have it: keys and values copied for every head.

    minimind makes query, key and value in three products, litgpt in one (`fused`).
    """

    def __init__(self, attention: Attention, fused: bool):
        super().__init__()
        parts = attention.q_proj, attention.k_proj, attention.v_proj
        self.widths = [part.out_features for part in parts]
        self.head_dim, self.o_proj = attention.head_dim, attention.o_proj
        weights = [part.weight.data.clone() for part in parts]
        weights = [torch.cat(weights)] if fused else weights
        self.weights = nn.ParameterList(nn.Parameter(w) for w in weights)

    def forward(self, x: Tensor, rotation=None, mask=None, cache=None) -> Tensor:
        if len(self.weights) > 1:
            parts = [F.linear(x, w) for w in self.weights]
        else:
            parts = F.linear(x, self.weights[0]).split(self.widths, -1)
        q, k, v = (p.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for p in parts)
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


def with_parts(ours: Transformer, norm=None, attention=None, mlp=None) -> Transformer:
    """A copy of ours in which every layer has other parts, with equal weights."""
    model = copy.deepcopy(ours)
    for layer in model.layers:
        if norm:
            layer.input_layernorm = norm(layer.input_layernorm)
            layer.post_attention_layernorm = norm(layer.post_attention_layernorm)
        if attention:
            layer.self_attn = attention(layer.self_attn)
        if mlp:
            layer.mlp = mlp(layer.mlp)
    if norm:
        model.norm = norm(model.norm)
    return model


PEERS = {
    "ours": lambda ours: ours,
    "transformers Llama": TheirLlama,
    "litgpt's structure": lambda ours: with_parts(
        ours, HandNorm, lambda part: RepeatedAttention(part, fused=True)
    ),
    "minimind's structure": lambda ours: with_parts(
        ours, HandNorm, lambda part: RepeatedAttention(part, fused=False)
    ),
    "nanoGPT's structure": lambda ours: GPT(ours.config),
}


class OtherForm(nn.Module):
    """Ours with the other of the two forms of attention in place of our choice."""

    def __init__(self, ours: Transformer, form: Callable):
        super().__init__()
        self.model, self.form = ours, form

    def forward(self, ids: Tensor) -> Tensor:
        chosen = attention_module.attend
        attention_module.attend = self.form
        try:
            return self.model(ids)
        finally:
            attention_module.attend = chosen


def sdpa(query, key, value, mask=None, dropout=0.0) -> Tensor:
    grouped = key.shape[1] < query.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=grouped
    )


def choices(ours: Transformer) -> dict[str, nn.Module]:
    """Ours with one of its choices taken back or changed, all with equal weights."""
    return {
        "ours": ours,
        "attention: SDPA": OtherForm(ours, sdpa),
        "attention: products": OtherForm(ours, attend_products),
        "norms by hand": with_parts(ours, HandNorm),
        "fused products": with_parts(ours, None, FusedAttention, FusedMLP),
    }


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
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def compare(models: dict, ids: Tensor, act: Callable, precision: str, rounds: int):
    """Median speed of every model as a multiple of the first."""
    for model in models.values():
        act(model, ids, precision)  # warm
    first = next(iter(models))
    once = seconds(lambda: act(models[first], ids, precision), 1)
    repeats = max(1, round(0.15 / max(once, 1e-4)))
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            spent = seconds(lambda m=model: act(m, ids, precision), repeats)
            times[name].append(spent)
    for name, spent in times.items():
        ratios = [a / b for a, b in zip(times[first], spent, strict=True)]
        yield name, statistics.median(spent), statistics.median(ratios)


def table(
    models: dict, ids: Tensor, rounds: int, precisions=("float32", "medium", "bf16")
):
    """One row per precision and model: speeds (ours: 1), and MB kept for backward."""
    rows = []
    for precision in precisions:
        speeds = {name: {} for name in models}
        for act in (forward, training):
            for name, spent, speed in compare(models, ids, act, precision, rounds):
                speeds[name][act.__name__] = round(speed, 2)
                speeds[name][f"{act.__name__}_ms"] = round(spent * 1e3, 1)
        for name, model in models.items():
            kept = saved_bytes(model, ids, precision) / 1e6
            row = {"precision": precision, "model": name, **speeds[name]}
            rows.append(row | {"kept_mb": round(kept, 1)})
            print(*(f"{value!s:>20}" for value in rows[-1].values()), flush=True)
    return rows


def settings_table(ours: nn.Module, ids: Tensor, rounds: int) -> list[dict]:
    """Speed of ours under each setting as a multiple of float32."""
    rows, base = [], {}
    for setting in ("float32", "medium", "bf16", "compile, bf16"):
        model = torch.compile(ours) if setting.startswith("compile") else ours
        row = {"setting": setting}
        for act in (forward, training):
            precision = setting.removeprefix("compile, ")
            found = list(compare({"ours": model}, ids, act, precision, rounds))
            base.setdefault(act.__name__, found[0][1])
            row[act.__name__] = round(base[act.__name__] / found[0][1], 2)
        rows.append(row)
        print(*(f"{value!s:>20}" for value in row.values()), flush=True)
    return rows


def peak_mb(name: str, arguments: argparse.Namespace) -> float:
    """How far three training passes raise the memory of a fresh process, in MB."""
    command = [sys.executable, __file__, "--peak", name, "--preset", arguments.preset]
    command += ["--rows", str(arguments.rows), "--context", str(arguments.context)]
    command += ["--threads", str(arguments.threads)]
    return float(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )


def highest_kb() -> int:
    """The most memory that this process has held so far."""
    status = Path("/proc/self/status")  # ru_maxrss would begin with the parent's
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_peak(make: Callable, ours: Transformer, ids: Tensor) -> None:
    model = make(ours).train()
    before = highest_kb()
    for _ in range(3):
        training(model, ids, "float32")
    print(round((highest_kb() - before) / 1024, 1))


PARTS = ("peers", "memory", "choices", "settings")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--peak", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    config = ModelConfig.from_preset(arguments.preset)
    ours = Transformer(config).train()
    rows, context = arguments.rows, arguments.context
    ids = torch.randint(0, config.vocab_size, (rows, context + 1))
    if arguments.peak:
        return print_peak(PEERS[arguments.peak], ours, ids)
    found = {
        "shape": f"{arguments.preset}, {rows} rows of {context} tokens",
        "processor": torch.backends.cpu.get_cpu_capability(),
        "threads": arguments.threads,
        "torch": torch.__version__.split("+")[0],
    }
    print(found)
    if "peers" in arguments.parts:
        peers = {name: make(ours).train() for name, make in PEERS.items()}
        for name, model in peers.items():
            difference = (model(ids[:, 1:]) - ours(ids[:, 1:])).abs().max().item()
            assert difference < 1e-3 or "nano" in name, (name, difference)
        found["peers"] = table(peers, ids, arguments.rounds, ("float32", "bf16"))
    if "memory" in arguments.parts:
        found["peak_mb"] = {name: peak_mb(name, arguments) for name in PEERS}
        print(found["peak_mb"])
    if "choices" in arguments.parts:
        found["choices"] = table(
            choices(ours), ids, arguments.rounds, ("float32", "bf16")
        )
    if "settings" in arguments.parts:
        packed = Packed(ours, rows, context)  # as the course trains it
        found["settings"] = settings_table(packed, ids, arguments.rounds)
    if arguments.save:
        place = Path(__file__).with_suffix(".json")
        before = json.loads(place.read_text()) if place.exists() else {}
        text = json.dumps(before | found, indent=1) + "\n"
        place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
