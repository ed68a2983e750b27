"""Fine-tuning on conversations: a base model learns to answer and when to stop."""

# Generated from notebooks/10_sft.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "ROLES",
    "CHATML",
    "SPEAKERS",
    "GREEDY",
    "check_messages",
    "refuse",
    "compile_template",
    "ChatTemplate",
    "SFTDataset",
    "as_messages",
    "parse_conversation",
    "read_conversations",
    "answer",
    "wilson",
    "grade",
]

# %%
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jinja2
import numpy as np
import torch
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minillm.data import FORMATS, decode, keep_good, suffix_of
from minillm.generation import GenerationConfig, generate

# %%
ROLES = ("system", "user", "assistant")


def check_messages(messages: list[dict]) -> None:
    """Raise `ValueError` unless the messages are a conversation.

    A conversation is a list of {"role", "content"}: a system message first, if there
    is one, then user and assistant in turn, beginning with the user.
    """
    if not messages:
        raise ValueError("an empty conversation: there is no message in it")
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"message {number}: role {role!r} is none of {ROLES}")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise ValueError(f"message {number}: its content is a {kind}, not text")
    turns = [message["role"] for message in messages]
    start = int(turns[0] == "system")
    for number, role in enumerate(turns[start:]):
        wanted = ("user", "assistant")[number % 2]
        if role != wanted:
            place = number + start + 1
            raise ValueError(f"message {place} is the {role}'s, the {wanted}'s is due")


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


class ChatTemplate:
    """Conversations as text and as ids, by the template that the tokenizer carries.

    Contents are always plain text: a user who types `<|im_end|>` gets the eight or so
    tokens that spell it, never the special token. For messages without such strings
    the ids are those of `transformers`' `apply_chat_template`.
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
        self.special = re.compile("|".join(map(re.escape, self.names)))

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
        messages, restore = self._shield(messages)
        text = self._fill(messages, add_generation_prompt)
        answers, ids, learned = self._answers(messages, text), [], []
        for start, piece in self._pieces(text):
            special = self.tokenizer.special_tokens.get(piece)
            new = (
                self.tokenizer.encode(restore(piece)) if special is None else [special]
            )
            overlap = (max(a, start) for a, b in answers if start < b)
            begin = min(overlap, default=math.inf)  # what follows it here is learned
            head = (
                restore(piece[: begin - start]) if begin < start + len(piece) else None
            )
            ids += new
            learned += self._after(new, head)
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

    def _shield(self, messages: list[dict]) -> tuple[list[dict], Callable[[str], str]]:
        """Contents with each special string replaced by a private character's code."""
        everything = "".join(message["content"] for message in messages)
        mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in everything)
        codes = {name: f"{mark}{n}{mark}" for n, name in enumerate(self.names)}
        back = {code: name for name, code in codes.items()}

        def hide(text: str) -> str:
            return self.special.sub(lambda found: codes[found[0]], text)

        def restore(text: str) -> str:
            return re.sub(f"{mark}\\d+{mark}", lambda found: back[found[0]], text)

        return [{**m, "content": hide(m["content"])} for m in messages], restore

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        """Special tokens and the stretches between them, each with where it starts."""
        start = 0
        for found in self.special.finditer(text):
            if found.start() > start:
                yield start, text[start : found.start()]
            yield found.start(), found[0]
            start = found.end()
        if start < len(text):
            yield start, text[start:]

    def _answers(self, messages: list[dict], text: str) -> list[tuple[int, int]]:
        """Where each answer begins in the text, and where its end token ends."""
        places = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                prompt = self._fill(messages[:number], add_generation_prompt=True)
                end = self.special.search(text, len(prompt))
                if not text.startswith(prompt) or not end:
                    raise ValueError(
                        "this chat template rewrites earlier turns or ends no answer "
                        "with a special token: what to learn from cannot be told"
                    )
                places.append((len(prompt), end.end()))
        return places

    def _after(self, ids: list[int], head: str | None) -> list[bool]:
        """Which of the ids begin after `head`, the first part of their text."""
        if head is None:
            return [False] * len(ids)
        sizes = [len(self.tokenizer.id_to_bytes(number)) for number in ids]
        starts = np.cumsum([0, *sizes[:-1]])
        return [bool(start >= len(head.encode("utf-8"))) for start in starts]


# %%
class SFTDataset:
    """Conversations as training examples, with the interface of `TokenFile`.

    `dataset[i]` is (input_ids, labels), int64: labels are shifted by one, and -100
    wherever the next token is not part of an answer. A conversation ends with its last
    answer's end token. One of more than `max_length` inputs is dropped whole, since
    half an answer would teach the model to stop nowhere; `dropped` counts them.
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
            self.examples.append((ids[:-1].astype(np.int64), labels[1:]))
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
SPEAKERS = {"human": "user", "gpt": "assistant"}


def as_messages(row: dict | list) -> list[dict]:
    """The messages of one row, whichever of the known formats it is in.

    {"conversations": [...]} or {"messages": [...]} of {"role", "content"} or, as in
    ShareGPT, {"from", "value"}; a bare list of those; or {"instruction", "input",
    "output"}, as in Alpaca. Raises `ValueError` with what is wrong.
    """
    turns = row
    if isinstance(row, dict) and "instruction" in row:
        question = "\n".join(filter(None, [row["instruction"], row.get("input")]))
        turns = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row.get("output")},
        ]
    elif isinstance(row, dict):
        turns = row.get("conversations", row.get("messages"))
    if not isinstance(turns, list) or not all(isinstance(m, dict) for m in turns):
        fields = f"fields {', '.join(row)}" if isinstance(row, dict) else "no fields"
        raise ValueError(f"in none of the known formats of conversations: {fields}")
    messages = []
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        messages.append({"role": SPEAKERS.get(str(role), role), "content": content})
    check_messages(messages)
    for number, message in enumerate(messages, 1):
        if not message["content"].strip():
            raise ValueError(f"message {number}, the {message['role']}'s, is empty")
    if messages[-1]["role"] != "assistant":
        raise ValueError("no answer: the last message is not the assistant's")
    return messages


# %%
def parse_conversation(raw: bytes | dict) -> dict:
    """A raw row -> {"conversations": messages} and whatever else the row holds."""
    try:
        row = json.loads(decode(raw)) if isinstance(raw, bytes) else raw
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    rest = row if isinstance(row, dict) else {}
    return {**rest, "conversations": as_messages(row)}


def read_conversations(path: str | Path, skip: bool = False) -> Iterator[dict]:
    """Yield {"conversations": messages, ...} from a file in any known format.

    A bad row raises `ValueError` with file, line and reason; with `skip`, bad rows are
    counted and reported. What else a row holds (its kind, its answer) is kept.
    """
    if (suffix := suffix_of(path)) not in FORMATS:
        known = " ".join(FORMATS)
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    find_rows, _ = FORMATS[suffix]
    return keep_good(path, find_rows(path), parse_conversation, skip)


# %%
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=128)


def answer(
    model,
    tokenizer,
    conversations: list[dict],
    config: GenerationConfig = GREEDY,
    rows: int = 32,
) -> list[str]:
    """The model's reply where each conversation has its last answer.

    `rows` prompts at a time, padded on the left and sorted by length.
    """
    template, pad = ChatTemplate(tokenizer), tokenizer.pad_token_id
    ends = (template.end_token_id, tokenizer.eos_token_id)
    config = replace(config, eos_token_id=ends, pad_token_id=pad)
    prompts = [
        template.encode(row["conversations"][:-1], add_generation_prompt=True)[0]
        for row in conversations
    ]
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    replies, device = [""] * len(prompts), next(model.parameters()).device
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        width = max(len(prompts[number]) for number in chosen)
        gaps = [width - len(prompts[number]) for number in chosen]
        filled = [[pad] * gap + prompts[n] for gap, n in zip(gaps, chosen, strict=True)]
        real = torch.arange(width) >= torch.tensor(gaps)[:, None]
        made = generate(
            model,
            torch.tensor(filled, device=device),
            config,
            attention_mask=real.to(device),
        )
        for number, new in zip(chosen, made[:, width:].tolist(), strict=True):
            replies[number] = tokenizer.decode(new, skip_special_tokens=True)
    return replies


# %%
def wilson(right: int, asked: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval for a share that was seen `right` times of `asked` (Wilson)."""
    share, spread = right / asked, z * z / asked
    middle = (share + spread / 2) / (1 + spread)
    half = (
        z * math.sqrt(share * (1 - share) / asked + spread / asked / 4) / (1 + spread)
    )
    return middle - half, middle + half


def grade(
    examples: list[dict], replies: list[str], judge: Callable[[dict, str], bool]
) -> dict[str, tuple[int, int]]:
    """Right and asked, by kind and under "all"; `judge(example, reply)` decides."""
    marks: dict[str, list[bool]] = {}
    for example, reply in zip(examples, replies, strict=True):
        marks.setdefault(example.get("kind", "other"), []).append(judge(example, reply))
    table = {kind: (sum(seen), len(seen)) for kind, seen in sorted(marks.items())}
    everything = [mark for seen in marks.values() for mark in seen]
    return {**table, "all": (sum(everything), len(everything))}
