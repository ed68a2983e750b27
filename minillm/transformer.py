"""From token ids to a score for every next token, and to a folder that holds it all."""

# Generated from notebooks/06_transformer.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "ARCHITECTURES",
    "REQUIRED",
    "INERT",
    "ONLY",
    "check_config",
    "ModelConfig",
    "read_rope",
    "read_fields",
    "build_layer",
    "additive_mask",
    "initialize",
    "Transformer",
    "save_folder",
    "read_weights",
    "match_weights",
    "count_parameters",
    "count_flops",
    "estimate_memory",
]

# %%
import difflib
import json
from dataclasses import asdict, dataclass, fields, replace
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minillm.attention import Attention, KVCache, Rope
from minillm.data import write_atomic
from minillm.decoder_layer import DecoderLayer, RMSNorm
from minillm.mlp import MLP

# %%
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def check_config(config: "ModelConfig") -> None:
    """Raise ValueError that names the first field that cannot be, and the mend."""
    for name, value in vars(config).items():
        counts = name.startswith("num_") or name.endswith(("_size", "_dim"))
        if counts and (type(value) is not int or value < 1):
            raise ValueError(f"{name}={value!r} must be a whole number above 0")
    H, G = config.num_attention_heads, config.num_key_value_heads
    if H % G:
        raise ValueError(
            f"num_attention_heads={H} must be a multiple of "
            f"num_key_value_heads={G}, so that heads share evenly"
        )
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"model_type={config.model_type!r} is not one of {', '.join(ARCHITECTURES)}"
        )
    if not 0 <= config.dropout < 1:
        raise ValueError(f"dropout={config.dropout} must be at least 0 and below 1")
    Rope(config.head_dim, config.rope_theta, config.rope_scaling)  # names its faults


# %%
@dataclass
class ModelConfig:
    """The shape of a model, in the names of Hugging Face's config.json.

    `num_key_value_heads` of None is `num_attention_heads`, `head_dim` of None is
    hidden_size / num_attention_heads. `model_type` is "llama", or "qwen3", which
    norms queries and keys. Raises ValueError that names field, value and mend.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 256
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    model_type: str = "llama"
    attention_bias: bool = False
    mlp_bias: bool = False
    dropout: float = 0.0
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    pad_token_id: int | None = 0

    def __post_init__(self):
        H, E = self.num_attention_heads, self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = H
        if self.head_dim is None:
            if E % H:
                raise ValueError(
                    f"hidden_size={E} is not a multiple of "
                    f"num_attention_heads={H}; change one or set head_dim"
                )
            self.head_dim = E // H
        check_config(self)

    @classmethod
    def from_json(cls, path: str | Path, **changes) -> "ModelConfig":
        """Read a config.json, of ours or of transformers; `changes` replace fields."""
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**read_fields(raw | changes, path))

    @classmethod
    def from_preset(cls, name: str | Path, **changes) -> "ModelConfig":
        """A preset by its name, or any JSON file or checkpoint folder by its path."""
        presets = resources.files("minillm") / "presets"
        for path in (presets / f"{name}.json", Path(name) / "config.json", Path(name)):
            if path.is_file():
                return cls.from_json(path, **changes)
        names = ", ".join(sorted(path.stem for path in presets.iterdir()))
        raise ValueError(f"no preset or file {str(name)!r}; presets: {names}")

    def to_dict(self) -> dict:
        """What config.json holds; transformers builds the same model from it."""
        architectures = [ARCHITECTURES[self.model_type]]
        return asdict(self) | {"architectures": architectures, "hidden_act": "silu"}


# %%
REQUIRED = {  # no default that all folders share, so a file must say them
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "rms_norm_eps", "tie_word_embeddings",
}  # fmt: skip
INERT = {  # says nothing about what is computed
    "architectures", "dtype", "max_window_layers", "sliding_window", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
ONLY = {  # the one value for which there is code here
    "hidden_act": "silu", "attention_dropout": 0.0, "pretraining_tp": 1,
    "use_sliding_window": False,
}  # fmt: skip


# %%
def read_rope(raw: dict) -> dict:
    """`rope_parameters`, as transformers 5 writes it, -> rope_theta, rope_scaling."""
    scaling = dict(raw.pop("rope_parameters", None) or raw.get("rope_scaling") or {})
    if theta := scaling.pop("rope_theta", None):
        raw["rope_theta"] = theta
    plain = scaling.get("rope_type", scaling.get("type", "default")) == "default"
    raw["rope_scaling"] = None if plain else scaling
    return raw


def read_fields(raw: dict, source: str | Path) -> dict:
    """The arguments of ModelConfig in a config.json; ValueError names what is wrong."""
    raw = read_rope({k: v for k, v in raw.items() if not k.startswith("_")})
    known = [field.name for field in fields(ModelConfig)]
    if missing := sorted(REQUIRED - raw.keys()):
        raise ValueError(f"{source}: {missing[0]} is missing; the model needs it")
    if any(kind != "full_attention" for kind in raw.pop("layer_types", None) or []):
        raise ValueError(f"{source}: layer_types must all be 'full_attention'")
    for name in sorted(raw.keys() - INERT - set(known)):
        if name not in ONLY:
            near = difflib.get_close_matches(name, known, 1)
            mend = f"did you mean {near[0]}?" if near else "there is no code for it"
            raise ValueError(f"{source}: unknown field {name}; {mend}")
        if raw[name] not in (ONLY[name], None):
            raise ValueError(f"{source}: {name}={raw[name]!r} must be {ONLY[name]!r}")
    return {name: raw[name] for name in known if name in raw}


# %%
def build_layer(config: ModelConfig) -> DecoderLayer:
    """One layer as the config describes it."""
    E, D, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
    norms = (RMSNorm(D, eps), RMSNorm(D, eps)) if config.model_type == "qwen3" else ()
    heads = config.num_attention_heads, config.num_key_value_heads, D
    dropout, bias = config.dropout, config.attention_bias
    self_attn = Attention(E, *heads, bias, *norms, dropout=dropout)
    mlp = MLP(E, config.intermediate_size, config.mlp_bias)
    return DecoderLayer(E, self_attn, mlp, eps, dropout)


# %%
def additive_mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A bool mask -> 0 and -inf, to be added to the scores; computed once a forward.

    The dtype is the one in which attention computes with `like` as its input.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    device, dtype = like.device.type, like.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, -torch.inf)


# %%
def initialize(model: nn.Module, std: float) -> None:
    """Normal weights, smaller where a branch ends, as GPT-2 (Radford 2019, 2.3).

    2 L branches add to the stream; each ends in an o_proj or a down_proj.
    """
    branches = 2 * len(model.layers)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            ends = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=std * (branches**-0.5 if ends else 1.0))


# %%
class Transformer(nn.Module):
    """A decoder-only transformer of Llama's or Qwen3's form, built from a config.

    forward: input_ids (B, T) -> logits (B, T, V). `mask` as in `attend`; `cache` from
    `new_cache()`; `position_ids` (T,) or (B, T) continue the cache by default;
    `logits_to_keep` scores the last positions only (0: all).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        V, E, L = config.vocab_size, config.hidden_size, config.num_hidden_layers
        self.embed_tokens = nn.Embedding(V, E)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(build_layer(config) for _ in range(L))
        self.norm = RMSNorm(E, config.rms_norm_eps)
        self.lm_head = nn.Linear(E, V, bias=False)
        self.rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
        self.tie_weights()
        initialize(self, config.initializer_range)

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,  # (B, T)
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: list[KVCache] | None = None,
        logits_to_keep: int = 0,
    ) -> Tensor:
        if position_ids is None:
            start = cache[0].length if cache else 0
            end = start + input_ids.shape[1]
            position_ids = torch.arange(start, end, device=input_ids.device)  # (T,)
        hidden_states = self.dropout(self.embed_tokens(input_ids))  # (B, T, E)
        rotation = self.rope(position_ids)
        mask = additive_mask(mask, hidden_states)
        caches = cache or [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            hidden_states = layer(hidden_states, rotation, mask, layer_cache)
        return self.lm_head(self.norm(hidden_states[:, -logits_to_keep:]))  # (B, T, V)

    def new_cache(self) -> list[KVCache]:
        return [KVCache() for _ in self.layers]

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, generation_config.json and model.safetensors."""
        save_folder(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu"
    ) -> "Transformer":
        """Read a Llama or Qwen3 folder; ValueError names what does not fit."""
        config = ModelConfig.from_json(Path(folder) / "config.json")
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            model = cls(config)
        weights = match_weights(model, read_weights(Path(folder), device), folder)
        model.load_state_dict(weights, assign=True)
        model.tie_weights()
        return model.eval()


# %%
def save_folder(model: Transformer, folder: Path) -> None:
    """Write `model` as transformers would: names, files, a tied head only once."""
    weights = {
        name if name.startswith("lm_head.") else f"model.{name}": tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if not (name.startswith("lm_head.") and model.config.tie_word_embeddings)
    }
    config = model.config.to_dict()
    config["torch_dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    generation = {k: v for k, v in config.items() if k.endswith("_token_id")}
    with write_atomic(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors lets only the owner read
    for name, content in (("config", config), ("generation_config", generation)):
        with write_atomic(folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# %%
def read_weights(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the shards that its index lists."""
    files = [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.exists() and not files[0].exists():
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / name for name in sorted(set(listed))]
    weights = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there: is the folder complete?")
        weights |= load_file(file, device=str(device))
    return weights


# %%
def match_weights(
    model: Transformer, found: dict[str, Tensor], source: str | Path
) -> dict[str, Tensor]:
    """`found` under the model's names; ValueError names a key or shape that is wrong.

    A tied head may be stored or not; stored angles of RoPE are computed anew.
    """
    found = {name.removeprefix("model."): tensor for name, tensor in found.items()}
    found = {k: v for k, v in found.items() if not k.endswith("rotary_emb.inv_freq")}
    if model.config.tie_word_embeddings and "embed_tokens.weight" in found:
        found.setdefault("lm_head.weight", found["embed_tokens.weight"])
        if not torch.equal(found["lm_head.weight"], found["embed_tokens.weight"]):
            raise ValueError(
                f"{source}: lm_head differs from embed_tokens, but "
                "config.json says tie_word_embeddings: true"
            )
    wanted = model.state_dict()
    for name in sorted(wanted.keys() ^ found.keys()):
        fault = "is missing" if name in wanted else "has no place in this model"
        raise ValueError(
            f"{source}: tensor {name} {fault}; does config.json belong "
            "to these weights?"
        )
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, "
                f"config.json asks for {tuple(wanted[name].shape)}"
            )
    return found


# %%
def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by place, by formula; their sum is `num_parameters()`."""
    V, E, F = config.vocab_size, config.hidden_size, config.intermediate_size
    H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    L, qk = config.num_hidden_layers, 2 * D * (config.model_type == "qwen3")
    attention = E * (H + 2 * G) * D + H * D * E  # q, k, v; o
    attention += config.attention_bias * ((H + 2 * G) * D + E)
    mlp = 3 * E * F + config.mlp_bias * (2 * F + E)
    return {
        "embed_tokens": V * E,
        "attention": L * attention,
        "mlp": L * mlp,
        "norms": L * (2 * E + qk) + E,
        "lm_head": 0 if config.tie_word_embeddings else V * E,
    }


def count_flops(config: ModelConfig, context: int) -> int:
    """Floating-point operations of a forward pass per token, products only.

    Two for each weight that multiplies the token (the embedding looks up, the head
    multiplies), and 4 L H D for each of the `context` keys, seen or masked.
    """
    parts = count_parameters(replace(config, attention_bias=False, mlp_bias=False))
    weights = parts["attention"] + parts["mlp"] + config.vocab_size * config.hidden_size
    width = config.num_attention_heads * config.head_dim
    return 2 * weights + 4 * config.num_hidden_layers * width * context


# %%
def estimate_memory(
    config: ModelConfig, tokens: int, bytes_per_number: int = 4
) -> dict[str, int]:
    """Bytes that training with AdamW holds, for `tokens` in one backward pass.

    Weights, gradients and two moments in float32. Activations by formula, attention
    fused (no T x T kept): exact within 1 % for 4 bytes; with 2, a lower bound of bf16.
    """
    E, D, H = config.hidden_size, config.head_dim, config.num_attention_heads
    heads = 2 * (H + config.num_key_value_heads) * D  # query, result; key, value
    qk_norms = (heads + H * D) * (config.model_type == "qwen3")  # result copied
    layer = 6 * E + heads + qk_norms + 4 * config.intermediate_size
    kept = config.num_hidden_layers * layer + 3 * E + config.vocab_size
    weights = 4 * sum(count_parameters(config).values())
    return {
        "weights": weights,
        "gradients": weights,
        "optimizer": 2 * weights,
        "activations": bytes_per_number * tokens * kept,
    }
