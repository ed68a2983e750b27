"""Fine-tuning on conversations: a base model learns to answer and when to stop."""

# Generated from notebooks/10_sft.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "CHATML", "GREEDY", "ChatTemplate", "prepare_for_chat", "SFTDataset", "Mixture",
    "answer", "wilson", "grade",
]  # fmt: skip

# %%
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import jinja2
import numpy as np
import torch
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minillm.generation import GenerationConfig, generate
from minillm.support.conversations import check_messages
from minillm.support.tokenizers import split_special

# %%
CHATML = (
    "{{ '<|endoftext|>' }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# %%
def refuse(message: str) -> None:
    """What a template calls as `raise_exception(message)`."""
    raise ValueError(f"the chat template refuses this conversation: {message}")


def compile_template(source: str) -> jinja2.Template:
    """A Jinja chat template, compiled as `transformers` does, in Jinja's sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = refuse
    return environment.from_string(source)


# %%
def hide_special(
    messages: list[dict], names: Sequence[str]
) -> tuple[list[dict], Callable[[str], str]]:
    """Messages without special strings in their contents, and what puts them back."""
    everything = "".join(message["content"] for message in messages)
    private = map(chr, range(0xE000, 0xF900))  # Unicode gives these no meaning
    mark = next(char for char in private if char not in everything)
    codes = {name: f"{mark}{n}{mark}" for n, name in enumerate(names)}
    hidden = [dict(message) for message in messages]
    for message in hidden:
        for name, code in codes.items():
            message["content"] = message["content"].replace(name, code)

    def restore(text: str) -> str:
        for name, code in codes.items():
            text = text.replace(code, name)
        return text

    return hidden, restore


# %%
def find_answers(
    messages: list[dict], text: str, special: list[tuple[int, str]], fill: Callable
) -> list[tuple[int, int]]:
    """Where each answer begins in the text, and where its end token ends.

    `special` are the special tokens of the text with their places;
    `fill(messages, True)` is the prompt for what comes next.
    """
    places = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = fill(messages[:number], True)
            later = ((start, name) for start, name in special if start >= len(prompt))
            start, name = next(later, (0, ""))
            if not text.startswith(prompt) or not name:
                raise ValueError(
                    "this chat template rewrites earlier turns or ends no answer "
                    "with a special token: it is unclear what to learn from"
                )
            places.append((len(prompt), start + len(name)))
    return places


def begin_after(ids: list[int], given: str, tokenizer) -> list[bool]:
    """Which of the ids begin after `given`, the first part of their text."""
    sizes = [len(tokenizer.id_to_bytes(number)) for number in ids]
    starts = np.cumsum([0, *sizes])[:-1]
    return [bool(start >= len(given.encode("utf-8"))) for start in starts]


# %%
class ChatTemplate:
    """Conversations as text and as ids, by the template that the tokenizer carries.

    Contents are always plain text: a user who types `<|im_end|>` gets the tokens that
    spell it, never the special one. For messages without such strings the ids are
    those of `transformers`' `apply_chat_template`.
    """

    def __init__(self, tokenizer):
        if not tokenizer.chat_template:
            raise ValueError(
                "this tokenizer has no chat template: its model was not fine-tuned "
                "to chat. Set tokenizer.chat_template, for instance to sft.CHATML"
            )
        self.tokenizer = tokenizer
        self.template = compile_template(tokenizer.chat_template)
        self.names = sorted(tokenizer.special_tokens, key=len, reverse=True)

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> str:
        """The conversation as text; with a prompt, up to where the answer begins."""
        check_messages(messages)
        return self._fill(messages, add_generation_prompt)

    def encode(
        self, messages: list[dict], add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """The conversation as ids, and which of them an assistant has to produce.

        Learned are the answers and the token that ends each of them, nothing else.
        """
        check_messages(messages)
        messages, restore = hide_special(messages, self.names)
        text = self._fill(messages, add_generation_prompt)
        pieces = list(split_special(text, self.names))
        special = [(start, name) for start, name in pieces if name in self.names]
        answers = find_answers(messages, text, special, self._fill)
        ids, learned = [], []
        for start, piece in pieces:
            number = self.tokenizer.special_tokens.get(piece)
            plain = restore(piece)
            new = self.tokenizer.encode(plain) if number is None else [number]
            begins = [max(a, start) for a, b in answers if start < b]
            given = piece[: min(begins, default=len(text)) - start]
            ids += new
            learned += begin_after(new, restore(given), self.tokenizer)
        return ids, learned

    @cached_property
    def end_token_id(self) -> int:
        """The token that ends an answer, as `<|im_end|>` does in ChatML."""
        probe = [("user", "question"), ("assistant", "answer")]
        ids, learned = self.encode([{"role": r, "content": c} for r, c in probe])
        return ids[len(ids) - 1 - learned[::-1].index(True)]

    def _fill(self, messages: list[dict], add_generation_prompt: bool) -> str:
        names = {number: name for name, number in self.tokenizer.special_tokens.items()}
        return self.template.render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=names.get(self.tokenizer.special_id("bos_token"), ""),
            eos_token=names.get(self.tokenizer.special_id("eos_token"), ""),
        )


# %%
def prepare_for_chat(model, tokenizer, chat_template: str = CHATML) -> ChatTemplate:
    """Give the tokenizer a template, unless it has one, and the model its end token."""
    tokenizer.chat_template = tokenizer.chat_template or chat_template
    template = ChatTemplate(tokenizer)
    model.config.eos_token_id = template.end_token_id
    return template


# %%
class SFTDataset:
    """Conversations as training examples, for `Batches`.

    `dataset[i]` is (input_ids, labels), int64: labels are shifted by one, and -100
    wherever the next token is not part of an answer. A conversation of more than
    `max_length` inputs is dropped whole; `dropped` counts them. Raises `ValueError`
    for one without an answer, or if none fits.
    """

    def __init__(self, conversations: Iterable, tokenizer, max_length: int):
        template = ChatTemplate(tokenizer)
        self.examples, self.dropped, self.max_length = [], 0, max_length
        for number, row in enumerate(conversations, 1):
            messages = row["conversations"] if isinstance(row, dict) else row
            ids, learned = template.encode(messages)
            if not any(learned):
                raise ValueError(f"conversation {number} has no answer to learn from")
            length = len(ids) - learned[::-1].index(True)
            if length - 1 > max_length:
                self.dropped += 1
                continue
            ids, learned = np.array(ids[:length]), np.array(learned[:length])
            labels = np.where(learned, ids, -100)
            self.examples.append((ids[:-1], labels[1:]))
        if not self.examples:
            raise ValueError(f"none of the conversations fits: {self}")
        self.lengths = np.array([len(ids) for ids, _ in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.examples[index]

    def __repr__(self) -> str:
        tokens = sum(len(ids) for ids, _ in self.examples)
        learned = sum(int((labels >= 0).sum()) for _, labels in self.examples)
        return (
            f"{len(self)} conversations, {tokens} tokens, {learned} of them learned; "
            f"{self.dropped} dropped for more than {self.max_length} tokens"
        )


# %%
class Mixture:
    """Several data sets as one: all their examples, for `Batches` to shuffle."""

    def __init__(self, *datasets):
        self.datasets = datasets
        self.lengths = np.concatenate([dataset.lengths for dataset in datasets])
        self.starts = np.cumsum([0, *map(len, datasets)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.datasets[which][index - int(self.starts[which])]


# %%
def pad_left(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one tensor (B, T), padding first, and where they are real."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    real = torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])
    return ids, real


# %%
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=128)


def answer(
    model,
    tokenizer,
    conversations: list[dict],
    config: GenerationConfig = GREEDY,
    rows: int = 32,
) -> list[str]:
    """The model's reply in place of the last answer of each conversation.

    `rows` prompts go through the model together, those of similar length.
    """
    template, device = ChatTemplate(tokenizer), next(model.parameters()).device
    ends = (template.end_token_id, tokenizer.eos_token_id)
    config = replace(config, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    prompts = [
        template.encode(row["conversations"][:-1], add_generation_prompt=True)[0]
        for row in conversations
    ]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    replies = [""] * len(prompts)
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        ids, real = pad_left([prompts[n] for n in chosen], tokenizer.pad_token_id)
        made = generate(model, ids.to(device), config, attention_mask=real.to(device))
        for number, new in zip(chosen, made[:, ids.shape[1] :].tolist(), strict=True):
            replies[number] = tokenizer.decode(new, skip_special_tokens=True)
    return replies


# %%
def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval for a share that was seen `right` times of `asked` (Wilson)."""
    share, spread = right / asked, z * z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / asked + spread / asked / 4) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def grade(
    examples: list[dict], replies: list[str], judge: Callable[[dict, str], bool]
) -> dict[str, tuple[int, int]]:
    """Right and asked, by kind and under "all"; `judge(example, reply)` decides."""
    right, asked = Counter(), Counter()
    for example, reply in zip(examples, replies, strict=True):
        kind = example.get("kind", "other")
        asked[kind] += 1
        right[kind] += bool(judge(example, reply))
    table = {kind: (right[kind], asked[kind]) for kind in sorted(asked)}
    return {**table, "all": (right.total(), asked.total())}
