"""Fine-tuning on conversations: a base model learns to answer and when to stop."""

# Generated from notebooks/10_sft.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "CHATML",
    "ROLES",
    "SPEAKERS",
    "GREEDY",
    "refuse",
    "compile_template",
    "check_messages",
    "hide_special",
    "split_special",
    "find_answers",
    "begin_after",
    "ChatTemplate",
    "prepare_for_chat",
    "SFTDataset",
    "find_turns",
    "as_messages",
    "parse_conversation",
    "read_conversations",
    "Mixture",
    "pad_left",
    "answer",
    "wilson",
    "grade",
]

# %%
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jinja2
import numpy as np
import torch
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minillm.data import FORMATS, fetch_rows, keep_good, parse_json, suffix_of
from minillm.generation import GenerationConfig, generate

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
def hide_special(
    messages: list[dict], names: Sequence[str]
) -> tuple[list[dict], Callable[[str], str]]:
    """Messages without special strings in their contents, and what puts them back."""
    everything = "".join(message["content"] for message in messages)
    private = map(chr, range(0xE000, 0xF900))  # Unicode gives these no meaning
    mark = next(char for char in private if char not in everything)
    codes = {name: f"{mark}{n}{mark}" for n, name in enumerate(names)}

    def hide(text: str) -> str:
        for name, code in codes.items():
            text = text.replace(name, code)
        return text

    def restore(text: str) -> str:
        for name, code in codes.items():
            text = text.replace(code, name)
        return text

    return [{**m, "content": hide(m["content"])} for m in messages], restore


def split_special(text: str, names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Special tokens and the stretches between them, each with where it starts.

    Example: list(split_special("a<s>b", ["<s>"])) == [(0, "a"), (1, "<s>"), (4, "b")]
    """
    start = 0
    for piece in re.split(f"({'|'.join(map(re.escape, names))})", text):
        if piece:
            yield start, piece
        start += len(piece)


# %%
def find_answers(
    messages: list[dict], text: str, marks: list[tuple[int, str]], fill: Callable
) -> list[tuple[int, int]]:
    """Where each answer begins in the text, and where its end token ends.

    `marks` are the special tokens of the text with their places; `fill(messages, True)`
    is the prompt for what comes next.
    """
    places = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = fill(messages[:number], True)
            later = ((start, name) for start, name in marks if start >= len(prompt))
            start, name = next(later, (0, ""))
            if not text.startswith(prompt) or not name:
                raise ValueError(
                    "this chat template rewrites earlier turns or ends no answer "
                    "with a special token: what to learn from cannot be told"
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
        marks = [(start, name) for start, name in pieces if name in self.names]
        answers = find_answers(messages, text, marks, self._fill)
        ids, learned = [], []
        for start, piece in pieces:
            special = self.tokenizer.special_tokens.get(piece)
            plain = restore(piece)
            new = self.tokenizer.encode(plain) if special is None else [special]
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
SPEAKERS = {"human": "user", "gpt": "assistant"}


def find_turns(row: dict | list) -> list[dict]:
    """The turns of one row, whichever of the known formats it is in."""
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
    return turns


# %%
def as_messages(row: dict | list) -> list[dict]:
    """The messages of one row, checked: a whole conversation that ends in an answer.

    Known are {"conversations": [...]} or {"messages": [...]} of {"role", "content"}
    or, as in ShareGPT, {"from", "value"}; a bare list of those; and {"instruction",
    "input", "output"}, as in Alpaca. Raises `ValueError` with what is wrong.
    """
    messages = []
    for turn in find_turns(row):
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
    row = parse_json(raw) if isinstance(raw, bytes) else raw
    rest = row if isinstance(row, dict) else {}
    return {**rest, "conversations": as_messages(row)}


def read_conversations(path: str | Path, skip: bool = False) -> Iterator[dict]:
    """Yield {"conversations": messages, ...} from a file in any known format.

    `path` may also name a public set, as in `read_texts`. A bad row raises `ValueError`
    with file, line and reason; with `skip`, bad rows are counted and reported. What
    else a row holds (its kind, its answer) is kept.
    """
    place = str(path).partition(":")[0]
    named = place.count("/") == 1 and suffix_of(place) not in FORMATS
    if named and not Path(path).exists():
        rows = enumerate(fetch_rows(str(path)), 1)
        numbered = ((f"row {number}", row) for number, row in rows)
        return keep_good(path, numbered, parse_conversation, skip)
    if (suffix := suffix_of(path)) not in FORMATS:
        known = " ".join(FORMATS)
        raise ValueError(f"{path}: unknown format {suffix!r}; known are {known}")
    find_rows, _ = FORMATS[suffix]
    return keep_good(path, find_rows(path), parse_conversation, skip)


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
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=128)


def pad_left(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids as one tensor (B, T), padding first, and where they are real."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    real = torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])
    return ids, real


# %%
def answer(
    model,
    tokenizer,
    conversations: list[dict],
    config: GenerationConfig = GREEDY,
    rows: int = 32,
) -> list[str]:
    """The model's reply where each conversation has its last answer.

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
    marks: dict[str, list[bool]] = {}
    for example, reply in zip(examples, replies, strict=True):
        marks.setdefault(example.get("kind", "other"), []).append(judge(example, reply))
    table = {kind: (sum(seen), len(seen)) for kind, seen in sorted(marks.items())}
    everything = [mark for seen in marks.values() for mark in seen]
    return {**table, "all": (sum(everything), len(everything))}
