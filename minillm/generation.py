"""From the model's logits to text: filters, sampling, the cache, and streams."""

# Generated from notebooks/07_generation.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "KNOWN",
    "STEPS",
    "scale_temperature",
    "keep_top_k",
    "keep_top_p",
    "keep_min_p",
    "penalize_repetition",
    "GenerationConfig",
    "filter_logits",
    "sample",
    "joined",
    "DecodeStep",
    "weights_now",
    "decode_step",
    "ContextFull",
    "room",
    "seeded",
    "LeftPadding",
    "decode_steps",
    "next_tokens",
    "end_tokens",
    "pad_token",
    "generate",
    "stream_ids",
    "stop_before",
    "stream",
]

# %%
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from minillm.attention import Attention, KVCache, attend, padding_mask, rotate
from minillm.decoder_layer import DecoderLayer, RMSNorm
from minillm.mlp import MLP
from minillm.tokenizer import BaseTokenizer
from minillm.transformer import Transformer


# %%
def scale_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Below 1 the likely becomes likelier; above 1 everything comes closer together."""
    return logits / temperature


# %%
def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Keep the `top_k` highest logits of each row (all that tie with the last)."""
    lowest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < lowest, -torch.inf)


# %%
def keep_top_p(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest tokens that together have probability `top_p`, at least one.

    Holtzman et al. 2020, section 3.1 ("nucleus sampling").
    """
    rising, order = logits.sort(dim=-1)
    out = rising.softmax(-1).cumsum(-1) <= 1 - top_p  # (B, V), in rising order
    out[:, -1] = False
    return logits.masked_fill(out.scatter(1, order, out), -torch.inf)


# %%
def keep_min_p(logits: torch.Tensor, min_p: float) -> torch.Tensor:
    """Keep tokens at least `min_p` times as likely as the likeliest.

    Nguyen et al. 2025, section 3.
    """
    probabilities = logits.softmax(-1)
    limit = min_p * probabilities.amax(-1, keepdim=True)
    return logits.masked_fill(probabilities < limit, -torch.inf)


# %%
def penalize_repetition(
    logits: torch.Tensor, previous: torch.Tensor, penalty: float
) -> torch.Tensor:
    """Make every token of `previous` less likely (Keskar et al. 2019, section 4.1).

    logits (B, V), previous (B, S) token ids, a negative id counts for nothing. Positive
    logits are divided by `penalty`, negative ones multiplied.
    """
    B, V = logits.shape
    seen = torch.zeros(B, V + 1, dtype=torch.bool, device=logits.device)
    seen = seen.scatter(1, previous.where(previous >= 0, V), True)[:, :V]
    penalized = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, penalized, logits)  # (B, V)


# %%
@dataclass
class GenerationConfig:
    """How text is made from logits. Names and meaning as in Hugging Face."""

    max_new_tokens: int = 128
    """Stop after this many tokens."""
    do_sample: bool = True
    """Draw from the distribution; False takes the likeliest token ("greedy")."""
    temperature: float = 1.0
    """Below 1 sharper, above 1 flatter."""
    top_k: int = 0
    """Draw among this many likeliest tokens; 0 is all of them."""
    top_p: float = 1.0
    """Draw among the fewest tokens with this much probability; 1 is all of them."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest; 0 drops none."""
    repetition_penalty: float = 1.0
    """Above 1, tokens that already occurred become less likely."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Token or tokens that end a text; None is the model's own, () is none."""
    pad_token_id: int | None = None
    """Fills rows of a batch that ended before the others; None is the model's own."""
    stop_strings: tuple[str, ...] = ()
    """A stream ends before the first of these texts."""
    seed: int | None = None
    """Same seed, same text; None draws on torch's global random state."""

    def __post_init__(self):
        self.stop_strings = tuple(self.stop_strings)
        allowed = dict(
            max_new_tokens=self.max_new_tokens >= 1,
            temperature=self.temperature > 0,
            top_k=self.top_k >= 0,
            top_p=0 < self.top_p <= 1,
            min_p=0 <= self.min_p <= 1,
            repetition_penalty=self.repetition_penalty > 0,
            stop_strings=all(self.stop_strings),
        )
        for name, fine in allowed.items():
            if not fine:
                hint = "; for greedy text, do_sample=False" * (name == "temperature")
                value = getattr(self, name)
                raise ValueError(f"{name}={value!r} is out of range{hint}")


# %%
def filter_logits(
    logits: torch.Tensor,
    config: GenerationConfig,
    previous: torch.Tensor | None = None,
) -> torch.Tensor:
    """All that `config` does to logits (B, V), in the order of Hugging Face.

    The repetition penalty also holds for greedy text; the rest is for sampling.
    """
    logits = logits.float()
    if config.repetition_penalty != 1.0 and previous is not None:
        logits = penalize_repetition(logits, previous, config.repetition_penalty)
    if not config.do_sample:
        return logits
    if config.temperature != 1.0:
        logits = scale_temperature(logits, config.temperature)
    if config.top_k > 0:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1.0:
        logits = keep_top_p(logits, config.top_p)
    return keep_min_p(logits, config.min_p) if config.min_p > 0 else logits


# %%
def sample(
    logits: torch.Tensor,
    config: GenerationConfig,
    previous: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Choose one token per row: logits (B, V), ids so far (B, S) -> (B,)."""
    logits = filter_logits(logits, config, previous)
    if not config.do_sample:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


# %%
def joined(*parts: nn.Linear) -> torch.Tensor:
    """Linear layers that read the same input, as one matrix (in, out)."""
    weight = torch.cat([part.weight.detach() for part in parts]).mT
    exact = weight.dtype == torch.float32  # then one row reads this order faster
    return weight.contiguous() if exact else weight


# %%
class DecodeStep:
    """`model(new, cache=cache)[:, -1]` for one token a row, from joined weights."""

    def __init__(self, model: Transformer):
        self.made_from, self.config = weights_now(model), model.config
        self.embed_tokens, self.rope, self.norm = (
            model.embed_tokens,
            model.rope,
            model.norm,
        )
        self.axes = torch.eye(model.config.head_dim)[:, None]  # (D heads, 1, D)
        self.lm_head, self.layers = joined(model.lm_head), []
        for layer in model.layers:
            at, mlp = layer.self_attn, layer.mlp
            first = joined(at.q_proj, at.k_proj, at.v_proj), joined(at.o_proj)
            second = joined(mlp.gate_proj, mlp.up_proj), joined(mlp.down_proj)
            self.layers.append((layer, *first, *second))

    def __call__(self, new: torch.Tensor, cache: list[KVCache]) -> torch.Tensor:
        """new (B, 1) -> logits (B, V)"""
        H, G = self.config.num_attention_heads, self.config.num_key_value_heads
        turn = rotate(self.axes, *self.rope(torch.tensor([cache[0].length])))[:, 0]
        stream = self.embed_tokens(new[:, 0])  # (B, E)
        for (layer, qkv, o, gate_up, down), past in zip(
            self.layers, cache, strict=True
        ):
            heads = layer.input_layernorm(stream) @ qkv  # (B, (H + 2 G) D)
            heads = heads.view(len(new), -1, 1, len(turn)).split([H, G, G], 1)
            query, key = (
                layer.self_attn.q_norm(heads[0]),
                layer.self_attn.k_norm(heads[1]),
            )
            query, key = ((x.float() @ turn).type_as(x) for x in (query, key))
            mixed = attend(query, *past.append(key, heads[2])).flatten(1)  # (B, H D)
            stream = torch.addmm(stream, mixed, o)
            gate, up = (layer.post_attention_layernorm(stream) @ gate_up).chunk(2, -1)
            stream = torch.addmm(stream, layer.mlp.activation(gate) * up, down)
        return self.norm(stream) @ self.lm_head


# %%
KNOWN = {
    Transformer, DecoderLayer, Attention, MLP, RMSNorm,
    nn.Embedding, nn.Linear, nn.ModuleList, nn.Dropout, nn.Identity,
}  # fmt: skip
STEPS: WeakKeyDictionary[Transformer, DecodeStep] = WeakKeyDictionary()


def weights_now(model: Transformer) -> list[tuple[int, float]]:
    """Place and sum of every parameter: something in it differs after any change."""
    parameters = model.parameters()
    return [(p.data_ptr(), p.sum(dtype=torch.float32).item()) for p in parameters]


def decode_step(model: Transformer) -> DecodeStep | None:
    """The step for this model with its weights of now, or None if it has none."""
    if type(model) is not Transformer or model.training:
        return None
    weights = dict(model.named_parameters())
    plain = all(type(p) in KNOWN and not p._forward_hooks for p in model.modules())
    plain &= not any(name.endswith("bias") or w.is_cuda for name, w in weights.items())
    ours = (Attention, MLP)
    plain &= all((type(a.self_attn), type(a.mlp)) == ours for a in model.layers)
    size = sum(weight.nbytes for weight in weights.values())
    if not plain or size > 2**30 or torch.is_autocast_enabled("cpu"):
        return None
    step = STEPS.get(model)
    if step is None or step.made_from != weights_now(model):
        step = STEPS[model] = DecodeStep(model)
    return step


# %%
class ContextFull(UserWarning):
    """Generation stopped because the model's context had no room for more."""


def room(model: Transformer, input_ids: torch.Tensor, max_new_tokens: int) -> int:
    """How many of `max_new_tokens` fit into the context behind input_ids (B, T).

    Raises ValueError for a prompt that is empty, fills the context, or has ids that the
    model does not know.
    """
    length, context = input_ids.shape[1], model.config.max_position_embeddings
    if length < 1:
        raise ValueError("the prompt is empty: it needs at least the begin token")
    if length >= context:
        raise ValueError(
            f"the prompt has {length} tokens and the model's context "
            f"(max_position_embeddings) is {context}: nothing can follow"
        )
    if (largest := input_ids.max().item()) >= (V := model.config.vocab_size):
        raise ValueError(
            f"token {largest} of the prompt is not below vocab_size={V}: "
            "is this the model's tokenizer?"
        )
    return min(max_new_tokens, context - length)


def seeded(seed: int | None, device: torch.device) -> torch.Generator | None:
    """A stream of random numbers of its own, or None for torch's global one."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)


# %%
class LeftPadding:
    """Which positions of a growing batch hold tokens, and the place of each token.

    attention_mask (B, T) is 0 for padding. ValueError unless that is on the left.
    """

    def __init__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        self.tokens = attention_mask.bool()  # (B, S)
        if self.tokens.shape != input_ids.shape:
            raise ValueError(f"{attention_mask.shape=} but {input_ids.shape=}")
        if not self.tokens[:, -1].all() or (self.tokens.int().diff() < 0).any():
            raise ValueError("padding must stand on the left: each row ends in a token")
        self.none = bool(self.tokens.all())

    def last(self, num: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Mask (B, 1, num, S) and position_ids (B, num) of the last `num` positions."""
        if self.none:
            return None, None
        places = (self.tokens.long().cumsum(1) - 1).clamp(min=0)  # (B, S)
        return padding_mask(self.tokens, num), places[:, -num:]

    def grow(self) -> None:
        if not self.none:
            self.tokens = torch.nn.functional.pad(self.tokens, (0, 1), value=True)


# %%
def decode_steps(
    model: Transformer,
    input_ids: torch.Tensor,
    config: GenerationConfig,
    attention_mask: torch.Tensor | None,
    cache: list[KVCache],
) -> Iterator[torch.Tensor]:
    """The loop of `next_tokens`, without its switch for gradients."""
    limit = room(model, input_ids, config.max_new_tokens)
    start = min(cache[0].length, input_ids.shape[1] - 1)
    for layer in cache:
        layer.crop(start)
    generator = seeded(config.seed, input_ids.device)
    padding = LeftPadding(input_ids, attention_mask)
    previous = input_ids.where(padding.tokens, -1)
    new, step = input_ids[:, start:], None
    for made in range(limit):
        if made == 1 and padding.none:
            step = decode_step(model)
        spots = padding.last(new.shape[1])
        logits = step(new, cache) if step else model(new, *spots, cache, 1)[:, -1]
        chosen = sample(logits, config, previous, generator)  # (B,)
        yield chosen
        new = chosen[:, None]  # (B, 1)
        padding.grow()
        if config.repetition_penalty != 1.0:
            previous = torch.cat([previous, new], 1)
    if limit < config.max_new_tokens:
        full = f"the context of {model.config.max_position_embeddings} is full"
        warnings.warn(f"stopped after {limit} new tokens: {full}", ContextFull, 2)


# %%
def next_tokens(
    model: Transformer,
    input_ids: torch.Tensor,
    config: GenerationConfig,
    attention_mask: torch.Tensor | None = None,
    cache: list[KVCache] | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next token of every row, (B,), then the next: at most `room` times.

    input_ids (B, T): first what the cache does not hold yet goes through the model
    (prefill), then one token a step. attention_mask (B, T) is 0 for padding, which
    stands on the left. Warns `ContextFull` if the context ends before max_new_tokens.
    """
    own = cache is None  # and then nobody else will ever write to it
    no_gradients = torch.inference_mode() if own else torch.no_grad()
    cache = model.new_cache() if own else cache
    return no_gradients(decode_steps)(model, input_ids, config, attention_mask, cache)


# %%
def end_tokens(model: Transformer, config: GenerationConfig) -> tuple[int, ...]:
    """The tokens that end a text: the config's, or else the model's own."""
    ends = config.eos_token_id
    ends = model.config.eos_token_id if ends is None else ends
    return (ends,) if isinstance(ends, int) else tuple(ends or ())


def pad_token(model: Transformer, config: GenerationConfig) -> int:
    """What fills a row behind its end: the config's, the model's, or an end token."""
    own = config.pad_token_id, model.config.pad_token_id, *end_tokens(model, config)
    return next((token for token in own if token is not None), 0)


# %%
def generate(
    model: Transformer,
    input_ids: torch.Tensor,
    config: GenerationConfig | None = None,
    attention_mask: torch.Tensor | None = None,
    cache: list[KVCache] | None = None,
) -> torch.Tensor:
    """Continue every row of input_ids (B, T) until its end token: (B, T + new).

    attention_mask (B, T): 0 for padding, on the left. What follows a row's end is
    padding. A `cache` holds the keys and values of the first tokens of input_ids, and
    afterwards of all but the last. `ContextFull` is warned if the context runs out.
    """
    config = config or GenerationConfig()
    if config.stop_strings:
        raise ValueError("stop_strings are text and generate makes ids: use stream")
    ends = torch.tensor(end_tokens(model, config), device=input_ids.device)
    pad = pad_token(model, config)
    done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    columns = []
    for chosen in next_tokens(model, input_ids, config, attention_mask, cache):
        columns.append(chosen.where(~done, pad))
        done |= torch.isin(chosen, ends)
        if done.all():
            break
    return torch.cat([input_ids, torch.stack(columns, 1)], 1)


# %%
def stream_ids(
    model: Transformer,
    input_ids: torch.Tensor,
    config: GenerationConfig | None = None,
    cache: list[KVCache] | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow one row (1, T), each as soon as it is chosen.

    The end token is not yielded. `cache` and `ContextFull` as in `generate`.
    """
    if len(input_ids) != 1:
        raise ValueError(f"a stream continues one row, not {len(input_ids)}")
    config = config or GenerationConfig()
    ends = end_tokens(model, config)
    for chosen in next_tokens(model, input_ids, config, None, cache):
        if (token := chosen.item()) in ends:
            return
        yield token


# %%
def stop_before(pieces: Iterable[str], stop_strings: tuple[str, ...]) -> Iterator[str]:
    """Pass text on until one of `stop_strings` comes, which may be split over pieces.

    What could be the beginning of one waits until that is decided.
    Example: "".join(stop_before(["Hi", "!\\n", "\\nBye"], ("\\n\\n",))) == "Hi!"
    """
    waiting = ""
    for piece in pieces:
        waiting += piece
        found = [waiting.find(stop) for stop in stop_strings if stop in waiting]
        beginnings = [stop[:n] for stop in stop_strings for n in range(1, len(stop))]
        held = max((len(b) for b in beginnings if waiting.endswith(b)), default=0)
        sure = min(found) if found else len(waiting) - held
        if sure:
            yield waiting[:sure]
        if found:
            return
        waiting = waiting[sure:]
    if waiting:
        yield waiting


# %%
def stream(
    model: Transformer,
    tokenizer: BaseTokenizer,
    prompt: str | list[int],
    config: GenerationConfig | None = None,
    cache: list[KVCache] | None = None,
) -> Iterator[str]:
    """Yield the text that follows `prompt`, in whole characters, as it is made.

    A str starts a document: the begin token is put before it. A list of ids is taken
    as it is. Ends before an end token or a stop string; neither is yielded.
    """
    config = config or GenerationConfig()
    if isinstance(prompt, str):
        begin = model.config.bos_token_id
        prompt = ([] if begin is None else [begin]) + tokenizer.encode(prompt)
    input_ids = torch.tensor([prompt], device=next(model.parameters()).device)
    pieces = tokenizer.stream(stream_ids(model, input_ids, config, cache))
    return stop_before(pieces, config.stop_strings)
