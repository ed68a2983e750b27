"""From token ids to a score for every next token, and to a folder that holds it all."""

# Generated from notebooks/06_transformer.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "FORMS", "ModelConfig", "build_layer", "Counts", "count_layers", "Form",
    "Transformer", "count_parameters", "count_flops", "estimate_memory",
]  # fmt: skip

# %%
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minillm.attention import Attention, KVCache, Rope, head_size
from minillm.decoder_layer import DecoderLayer, RMSNorm
from minillm.mlp import MLP
from minillm.support.files import read_json, write_atomic, write_json
from minillm.support.model_files import check_tensors, read_fields


# %%
@dataclass
class ModelConfig:
    """The shape of a model, in the names of Hugging Face's config.json.

    `num_key_value_heads` of None is `num_attention_heads`, `head_dim` of None is
    hidden_size / num_attention_heads. `model_type` is a key of `FORMS`. Raises
    ValueError that names the field and its value.
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
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        for name in [field.name for field in fields(ModelConfig)]:
            value, number = getattr(self, name), name.startswith("num_")
            number |= name.endswith(("_size", "_dim")) and value is not None
            if number and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be a whole number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be at least 0 and below 1")
        heads = self.num_attention_heads, self.num_key_value_heads
        self.head_dim = head_size(self.hidden_size, *heads, self.head_dim)
        if not form_of(self.model_type).learned_positions:
            Rope(self.head_dim, self.rope_theta, self.rope_scaling)  # checks its own

    @classmethod
    def from_json(cls, path: str | Path, **changes) -> "ModelConfig":
        """Read a config.json of any form in FORMS; `changes` replace fields."""
        raw = read_json(path)
        kind = raw.get("model_type", "llama")
        raw = {"model_type": kind} | form_of(kind).read_config(raw) | changes
        config = form_of(raw["model_type"]).config
        known = [field.name for field in fields(config)]
        return config(**read_fields(raw, known, path))

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
        form = form_of(self.model_type)
        named = {"architectures": [form.architecture], "hidden_act": "silu"}
        return form.write_config(asdict(self) | named)


# %%
def build_layer(config: ModelConfig, qk_norm: bool = False) -> DecoderLayer:
    """One layer of Llama as the config describes it; with `qk_norm`, of Qwen3."""
    E, D, eps = config.hidden_size, config.head_dim, config.rms_norm_eps
    norms = (RMSNorm(D, eps), RMSNorm(D, eps)) if qk_norm else ()
    heads = config.num_attention_heads, config.num_key_value_heads, D
    dropout, bias = config.dropout, config.attention_bias
    self_attn = Attention(E, *heads, bias, *norms, dropout=dropout)
    mlp = MLP(E, config.intermediate_size, config.mlp_bias)
    return DecoderLayer(E, self_attn, mlp, eps, dropout)


# %%
@dataclass
class Counts:
    """What all layers and the last norm of a model take; tables are not included."""

    parameters: dict[str, int]  # by place
    active: int  # weights that multiply each token, without biases
    kept: int  # numbers that the backward pass needs for each token


def count_layers(config: ModelConfig, qk_norm: bool = False) -> Counts:
    """The counts for layers from `build_layer`, by formula."""
    E, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    H, G, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    attention, mlp = E * (H + 2 * G) * D + H * D * E, 3 * E * F  # q, k, v, then o
    biases = config.attention_bias * ((H + 2 * G) * D + E)
    parameters = {"attention": L * (attention + biases)}
    parameters["mlp"] = L * (mlp + config.mlp_bias * (2 * F + E))
    parameters["norms"] = L * (2 * E + qk_norm * 2 * D) + E
    heads = 2 * (H + G) * D  # query, result; key, value
    normed = qk_norm * (heads + H * D)  # the result is copied, too
    kept = L * (6 * E + heads + normed + 4 * F) + 3 * E
    return Counts(parameters, L * (attention + mlp), kept)


# %%
def add_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names of tensors -> Llama's in a file: "model." before all but the head."""
    head = {k: v for k, v in weights.items() if k.startswith("lm_head.")}
    return {f"model.{k}": v for k, v in weights.items() if k not in head} | head


def strip_prefix(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Llama's names in a file -> ours. Stored angles of RoPE are computed again."""
    kept = {k: v for k, v in found.items() if not k.endswith("rotary_emb.inv_freq")}
    return {k.removeprefix("model."): v for k, v in kept.items()}


# %%
@dataclass(frozen=True)
class Form:
    """A kind of model: everything that sets it apart, as an entry of `FORMS`.

    `config` may be a subclass of ModelConfig with more fields. `read_config` and
    `write_config` map the fields of a config.json to ours and back, `from_file` and
    `to_file` do so for tensors by name. By default nothing differs from Llama.
    """

    architecture: str  # the class in transformers, written to config.json
    build_layer: Callable[[ModelConfig], nn.Module] = build_layer
    count: Callable[[ModelConfig], Counts] = count_layers
    norm: Callable[[int, float], nn.Module] = RMSNorm  # before the head: (E, eps)
    learned_positions: bool = False  # a table added to the embeddings; no RoPE
    config: type[ModelConfig] = ModelConfig
    read_config: Callable[[dict], dict] = dict
    write_config: Callable[[dict], dict] = dict
    from_file: Callable[[dict], dict] = strip_prefix
    to_file: Callable[[dict], dict] = add_prefix


# %%
FORMS: dict[str, Form] = {
    "llama": Form("LlamaForCausalLM"),
    "qwen3": Form(
        "Qwen3ForCausalLM",
        build_layer=partial(build_layer, qk_norm=True),
        count=partial(count_layers, qk_norm=True),
    ),
}


# %%
def form_of(model_type: str) -> Form:
    """The entry of FORMS; ValueError lists those that exist."""
    if model_type not in FORMS:
        raise ValueError(f"{model_type=} is not one of {', '.join(FORMS)}")
    return FORMS[model_type]


# %%
def additive_mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A bool mask -> 0 and -inf, in the dtype of the scores for input `like`."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    device, dtype = like.device.type, like.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill(~mask, -torch.inf)


# %%
def initialize(model: nn.Module, std: float) -> None:
    """Normal weights, smaller where a branch ends, as GPT-2 (Radford 2019, 2.3)."""
    branches = 2 * len(model.layers)  # that add to the stream
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim > 1:
            ends = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(parameter, std=std * (branches**-0.5 if ends else 1.0))


# %%
class Transformer(nn.Module):
    """A decoder-only transformer of any form in `FORMS`, built from a config.

    forward: input_ids (B, T) or inputs_embeds (B, T, E) -> logits (B, T, V), of the
    last `logits_to_keep` positions (0: all). `mask` as in `attend`; `cache` from
    `new_cache()`; `position_ids` (T,) or (B, T), by default those after the cache.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config, form = config, form_of(config.model_type)
        V, E, L = config.vocab_size, config.hidden_size, config.num_hidden_layers
        self.embed_tokens = nn.Embedding(V, E)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(form.build_layer(config) for _ in range(L))
        self.norm = form.norm(E, config.rms_norm_eps)
        self.lm_head = nn.Linear(E, V, bias=False)
        self.embed_positions = self.rope = None
        if form.learned_positions:
            self.embed_positions = nn.Embedding(config.max_position_embeddings, E)
        else:
            self.rope = Rope(config.head_dim, config.rope_theta, config.rope_scaling)
        self.tie_weights()
        initialize(self, config.initializer_range)

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def hidden_states(
        self,
        input_ids: Tensor | None = None,  # (B, T)
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: list[KVCache] | None = None,
        inputs_embeds: Tensor | None = None,  # (B, T, E)
    ) -> Tensor:
        """The final vector of each token, normed, as the head reads it: (B, T, E)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            start = cache[0].length if cache else 0
            position_ids = torch.arange(start, start + x.shape[1], device=x.device)
        if self.embed_positions is not None:
            x = x + self.embed_positions(position_ids)
        x = self.dropout(x)  # (B, T, E)
        rotation = None if self.rope is None else self.rope(position_ids)
        mask = additive_mask(mask, x)
        caches = cache or [None] * len(self.layers)
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, rotation, mask, layer_cache)
        return self.norm(x)

    def forward(
        self,
        input_ids: Tensor | None = None,
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: list[KVCache] | None = None,
        logits_to_keep: int = 0,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        x = self.hidden_states(input_ids, mask, position_ids, cache, inputs_embeds)
        x = x[:, -logits_to_keep:] if logits_to_keep else x
        return self.lm_head(x)  # (B, T, V)

    def new_cache(self) -> list[KVCache]:
        """An empty cache for each layer."""
        return [KVCache() for _ in self.layers]

    def num_parameters(self) -> int:
        """Parameters, a tied table counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, generation_config.json and model.safetensors."""
        save_folder(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu"
    ) -> "Transformer":
        """Open a folder of any form in FORMS; ValueError names what does not fit."""
        config = ModelConfig.from_json(Path(folder) / "config.json")
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            model = cls(config)
        load_folder(model, Path(folder), device)
        return model.eval()


# %%
def save_folder(model: Transformer, folder: Path) -> None:
    """Write `model` as transformers would: names, files, a tied head only once."""
    weights, config = dict(model.state_dict()), model.config.to_dict()
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    weights = form_of(model.config.model_type).to_file(weights)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    config["torch_dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    with write_atomic(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
        temporary.chmod(0o644)  # safetensors lets only the owner read
    write_json(config, folder / "config.json")
    generation = {k: v for k, v in config.items() if k.endswith("_token_id")}
    write_json(generation, folder / "generation_config.json")


# %%
def read_weights(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of model.safetensors, or of the shards that its index lists."""
    files = [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.exists() and not files[0].exists():
        listed = read_json(index)["weight_map"].values()
        files = [folder / name for name in sorted(set(listed))]
    weights = {}
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there: is the folder complete?")
        weights |= load_file(file, device=str(device))
    return weights


def load_folder(model: Transformer, folder: Path, device: torch.device | str) -> None:
    """Fill `model` from a folder; ValueError names a tensor that does not fit."""
    form, tied = form_of(model.config.model_type), model.config.tie_word_embeddings
    found = form.from_file(read_weights(folder, device))
    if tied and "embed_tokens.weight" in found:
        head = found.setdefault("lm_head.weight", found["embed_tokens.weight"])
        if not torch.equal(head, found["embed_tokens.weight"]):
            raise ValueError(
                f"{folder}: tie_word_embeddings is true, but lm_head differs"
            )
    check_tensors(found, model.state_dict(), folder)
    model.load_state_dict({k: v.contiguous() for k, v in found.items()}, assign=True)
    model.tie_weights()


# %%
def count_parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by place, by formula; their sum is `num_parameters()`."""
    form, E = form_of(config.model_type), config.hidden_size
    parts = {"embed_tokens": config.vocab_size * E, **form.count(config).parameters}
    if form.learned_positions:
        parts["embed_positions"] = config.max_position_embeddings * E
    tied = config.tie_word_embeddings
    return parts | {"lm_head": 0 if tied else parts["embed_tokens"]}


def count_flops(config: ModelConfig, context: int) -> int:
    """Floating-point operations of a forward pass per token, products only.

    Two for each weight that multiplies the token (the embedding looks up, the head
    multiplies), and 4 L H D for each of the `context` keys, seen or masked.
    """
    weights = form_of(config.model_type).count(config).active
    weights += config.vocab_size * config.hidden_size
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
    kept = form_of(config.model_type).count(config).kept + config.vocab_size
    weights = 4 * sum(count_parameters(config).values())
    parts = dict(weights=weights, gradients=weights, optimizer=2 * weights)
    return parts | {"activations": bytes_per_number * tokens * kept}
