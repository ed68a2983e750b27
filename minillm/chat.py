"""A conversation that remembers: turns, a reused cache, a context that runs out."""

# Generated from notebooks/11_chat.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "CHAT_CONFIG", "common_prefix", "fit_context", "Chat", "token_probabilities",
]  # fmt: skip

# %%
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from minillm.generation import GenerationConfig, stop_before, stream_ids
from minillm.sft import ChatTemplate
from minillm.support.conversations import read_conversations
from minillm.support.formats import write_jsonl


# %%
def common_prefix(first: list[int], second: list[int]) -> int:
    """How many ids two sequences begin with alike."""
    length = min(len(first), len(second))
    return next((n for n in range(length) if first[n] != second[n]), length)


# %%
def fit_context(
    template: ChatTemplate,
    head: list[dict],
    messages: list[dict],
    limit: int,
    forgotten: int = 0,
) -> tuple[list[int], int]:
    """Ids of the prompt in at most `limit` tokens, and how many messages it leaves out.

    `head`, the system message, always stays. The oldest exchanges are left out first,
    `forgotten` messages at least. Raises `ValueError` if even the last one is too long.
    """
    for start in range(forgotten, len(messages), 2):
        seen = head + messages[start:]
        ids, _ = template.encode(seen, add_generation_prompt=True)
        if len(ids) <= limit:
            return ids, start
    raise ValueError(
        f"the message is too long: {len(ids)} tokens, with its role and any system "
        f"message, where the context has room for {limit} and a reply"
    )


# %%
CHAT_CONFIG = GenerationConfig(max_new_tokens=160, temperature=0.6)


class Chat:
    """A conversation with a model, whose cache is kept from turn to turn.

    `messages` is all of it. When it no longer fits the context, the oldest exchanges
    are left out of the prompt; `forgotten` counts those messages. After a reply,
    `finish_reason` is "stop" (the model ended it), "length" or "stopped" (by the
    caller), and `reused` counts the tokens of the prompt that were in the cache.
    """

    def __init__(
        self,
        model,
        tokenizer,
        system: str | None = None,
        config: GenerationConfig = CHAT_CONFIG,
    ):
        self.model, self.config, self.system = model.eval(), config, system
        self.tokenizer, self.template = tokenizer, ChatTemplate(tokenizer)
        self.context = model.config.max_position_embeddings
        self.reset()

    def reset(self) -> None:
        """Begin again; the system message stays."""
        self.messages, self.forgotten = [], 0
        self.cache, self.cached = self.model.new_cache(), []
        self.finish_reason, self.reused = None, 0

    @property
    def head(self) -> list[dict]:
        """The system message, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def prompt(self, messages: list[dict]) -> list[int]:
        """Ids of what the model sees of these, with room to reply; sets `forgotten`."""
        limit = self.context - min(self.config.max_new_tokens, self.context // 4)
        parts = self.template, self.head, messages
        ids, self.forgotten = fit_context(*parts, limit, self.forgotten)
        return ids

    def stream(self, text: str) -> Iterator[str]:
        """Say `text`; yield the reply piece by piece. Closing it stops the model."""
        message = {"role": "user", "content": text}
        ids = self.prompt([*self.messages, message])
        self.messages.append(message)
        reply, self.finish_reason = "", None
        try:
            pieces = self.tokenizer.stream(self._continue(ids))
            for piece in stop_before(pieces, self.config.stop_strings):
                reply += piece
                yield piece
            self.finish_reason = self.finish_reason or "stop"
        except GeneratorExit:
            self.finish_reason = "stopped"
            raise
        finally:
            self.messages.append({"role": "assistant", "content": reply})

    def reply(self, text: str) -> str:
        """Say `text` and return the whole reply."""
        return "".join(self.stream(text))

    def _continue(self, ids: list[int]) -> Iterator[int]:
        """Ids of the reply. Only what is not yet in the cache is computed."""
        kept = min(layer.length for layer in self.cache)
        self.reused = min(common_prefix(self.cached, ids), kept, len(ids) - 1)
        for layer in self.cache:
            layer.crop(self.reused)
        self.cached = list(ids)
        ends = (self.template.end_token_id, self.tokenizer.eos_token_id)
        longest = min(self.config.max_new_tokens, self.context - len(ids))
        config = replace(self.config, eos_token_id=ends, max_new_tokens=longest)
        prompt = torch.tensor([ids], device=self.model.lm_head.weight.device)
        for number in stream_ids(self.model, prompt, config, self.cache):
            self.cached.append(number)
            yield number
        if len(self.cached) - len(ids) == longest:
            self.finish_reason = "length"

    def undo(self) -> str:
        """Take back the last exchange, see again what now fits; return the question."""
        if not self.messages:
            raise ValueError("there is nothing to take back: no message was sent yet")
        *self.messages, question, _ = self.messages
        self.forgotten = 0
        if self.messages:
            with suppress(ValueError):  # one that was loaded may be too long
                self.prompt(self.messages[:-1])
        return question["content"]

    def save(self, path: str | Path) -> None:
        """Write the conversation as a line that chapter 10 can train on."""
        if not self.messages:
            raise ValueError("there is nothing to save: no message was sent yet")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl([{"conversations": self.head + self.messages}], path)

    def load(self, path: str | Path) -> None:
        """Continue a conversation that `save` wrote."""
        messages = next(read_conversations(path), {}).get("conversations")
        if not messages:
            raise ValueError(f"{path} contains no conversation")
        self.reset()
        self.system = None
        if messages[0]["role"] == "system":
            self.system = messages.pop(0)["content"]
        self.messages = messages


# %%
@torch.inference_mode()
def token_probabilities(chat: Chat) -> list[tuple[str, float]]:
    """The tokens of the last reply and its end, each with its probability."""
    seen = chat.head + chat.messages[chat.forgotten :]
    ids, learned = chat.template.encode(seen)
    start = len(chat.template.encode(seen[:-1], add_generation_prompt=True)[0])
    inputs = torch.tensor([ids], device=chat.model.lm_head.weight.device)
    shares = chat.model(inputs)[0, :-1].float().softmax(-1)  # (T - 1, V)
    return [
        (chat.tokenizer.decode([ids[t]]), shares[t - 1, ids[t]].item())
        for t in range(start, len(ids))
        if learned[t]
    ]
