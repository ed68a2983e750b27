"""From the model's logits to text: filters, sampling, the cache, and streams."""

# Generated from notebooks/07_generation.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "scale_temperature", "keep_top_k", "keep_top_p", "keep_min_p",
    "penalize_repetition", "GenerationConfig", "sample", "ContextFull", "generate",
    "stream_ids", "stop_before", "stream",
]  # fmt: skip

# %%
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.attention import KVCache, padding_mask
from minillm.tokenizer import BaseTokenizer
from minillm.transformer import Transformer


# %%
def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B, V) divided by `temperature`: below 1 sharper, above 1 flatter."""
    return logits / temperature


# %%
def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Keep the `top_k` highest logits of each row (all that tie with the last)."""
    lowest = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < lowest, -torch.inf)


# %%
def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keep the fewest tokens that together have probability `top_p`, at least one.

    Holtzman et al. 2020, section 3.1 ("nucleus sampling").
    """
    rising, order = logits.sort(dim=-1)
    out = rising.softmax(-1).cumsum(-1) <= 1 - top_p  # (B, V), in rising order
    out[:, -1] = False
    return logits.masked_fill(out.scatter(1, order, out), -torch.inf)


# %%
def keep_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Keep tokens at least `min_p` times as likely as the likeliest.

    Nguyen et al. 2025, section 3.
    """
    probabilities = logits.softmax(-1)
    limit = min_p * probabilities.amax(-1, keepdim=True)
    return logits.masked_fill(probabilities < limit, -torch.inf)


# %%
def penalize_repetition(logits: Tensor, previous: Tensor, penalty: float) -> Tensor:
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
        for name in [name for name, fine in allowed.items() if not fine]:
            hint = "; for greedy text, do_sample=False" * (name == "temperature")
            raise ValueError(f"{name}={getattr(self, name)!r} is out of range{hint}")

    def end_tokens(self, model: Transformer) -> tuple[int, ...]:
        """The tokens that end a text: those given here, or else the model's own."""
        own, given = model.config.eos_token_id, self.eos_token_id
        ends = own if given is None else given
        return (ends,) if isinstance(ends, int) else tuple(ends or ())


# %%
def filter_logits(
    logits: Tensor, config: GenerationConfig, previous: Tensor | None = None
) -> Tensor:
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
    logits: Tensor,
    config: GenerationConfig,
    previous: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose one token per row: logits (B, V), ids so far (B, S) -> (B,)."""
    logits = filter_logits(logits, config, previous)
    if not config.do_sample:
        return logits.argmax(-1)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


# %%
class ContextFull(UserWarning):
    """Generation stopped because the model's context had no room for more."""


def _room(model: Transformer, input_ids: Tensor, max_new_tokens: int) -> int:
    """How many of `max_new_tokens` fit behind input_ids (B, T); ValueError if none."""
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


def _seeded(seed: int | None, device: torch.device) -> torch.Generator | None:
    """A stream of random numbers of its own, or None for torch's global one."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)


# %%
class LeftPadding:
    """A growing batch with padding: `inputs` are its mask and position_ids, or None.

    attention_mask (B, T) is 0 for padding; ValueError unless that is on the left.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None, start=0):
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.real = real.bool()  # (B, S)
        self.inputs = None, None
        if real.shape != input_ids.shape:
            raise ValueError(f"{attention_mask.shape=} but {input_ids.shape=}")
        if not self.real[:, -1].all() or (self.real.int().diff() < 0).any():
            raise ValueError("padding must be on the left: each row ends in a token")
        if not self.real.all():  # the first `start` positions are in the cache already
            places = (self.real.cumsum(1) - 1).clamp(min=0)[:, start:]
            self.inputs = padding_mask(self.real, places.shape[1]), places

    def grow(self) -> None:  # for one more token in every row
        if self.inputs[0] is not None:
            self.real = torch.nn.functional.pad(self.real, (0, 1), value=True)
            self.inputs = self.real[:, None, None], self.inputs[1][:, -1:] + 1


# %%
def next_tokens(
    model: Transformer,
    input_ids: Tensor,
    config: GenerationConfig,
    attention_mask: Tensor | None = None,
    cache: list[KVCache] | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B,), then the next. Arguments: `generate`."""
    limit = _room(model, input_ids, config.max_new_tokens)
    no_gradients = torch.no_grad if cache else torch.inference_mode
    cache = cache or model.new_cache()
    start = min(cache[0].length, input_ids.shape[1] - 1)
    for layer in cache:
        layer.crop(start)
    generator = _seeded(config.seed, input_ids.device)
    padding = LeftPadding(input_ids, attention_mask, start)
    previous = input_ids.where(padding.real, -1)
    new = input_ids[:, start:]
    for _ in range(limit):
        with no_gradients():
            logits = model(new, *padding.inputs, cache, logits_to_keep=1)[:, -1]
            chosen = sample(logits, config, previous, generator)  # (B,)
        yield chosen
        new = chosen[:, None]  # (B, 1)
        padding.grow()
        if config.repetition_penalty != 1.0:
            previous = torch.cat([previous, new], 1)  # (B, S)
    if limit < config.max_new_tokens:
        full = f"the context of {model.config.max_position_embeddings} is full"
        warnings.warn(f"stopped after {limit} new tokens: {full}", ContextFull, 2)


# %%
def generate(
    model: Transformer,
    input_ids: Tensor,
    config: GenerationConfig | None = None,
    attention_mask: Tensor | None = None,
    cache: list[KVCache] | None = None,
) -> Tensor:
    """Continue every row of input_ids (B, T) until its end token: (B, T + new).

    attention_mask (B, T): 0 for padding, on the left. What follows a row's end is
    padding. A `cache` holds the keys and values of the first tokens of input_ids, and
    afterwards of all but the last. `ContextFull` is warned if the context runs out.
    """
    config = config or GenerationConfig()
    if config.stop_strings:
        raise ValueError("stop_strings are text and generate makes ids: use stream")
    ends = config.end_tokens(model)
    fills = config.pad_token_id, model.config.pad_token_id, *ends
    pad = next((token for token in fills if token is not None), 0)
    ends = torch.tensor(ends, device=input_ids.device)
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
    input_ids: Tensor,
    config: GenerationConfig | None = None,
    cache: list[KVCache] | None = None,
) -> Iterator[int]:
    """Yield the tokens that follow one row (1, T), each as soon as it is chosen.

    The end token is not yielded. `cache` and `ContextFull` as in `generate`.
    """
    if len(input_ids) != 1:
        raise ValueError(f"a stream continues one row, not {len(input_ids)}")
    config = config or GenerationConfig()
    ends = config.end_tokens(model)
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
