"""Conversations from files: which formats there are, and what is wrong with a row."""

from collections.abc import Iterator
from itertools import chain, cycle
from pathlib import Path

from minillm.support.formats import format_of, keep_good, parse_json
from minillm.support.sources import fetch_rows, names_set

ROLES = ("system", "user", "assistant")
SPEAKERS = {"human": "user", "gpt": "assistant"}  # ShareGPT's words for two of them


def check_messages(messages: list[dict]) -> None:
    """Raise `ValueError` unless the messages are a conversation.

    A conversation is a list of {"role", "content"}: a system message first, if there
    is one, then user and assistant in turn, beginning with the user.
    """
    if not messages:
        raise ValueError("an empty conversation: there is no message in it")
    first = ["system"] if messages[0].get("role") == "system" else []
    order = chain(first, cycle(("user", "assistant")))
    for number, (message, due) in enumerate(zip(messages, order, strict=False), 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"message {number}: role {role!r} is none of {ROLES}")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise ValueError(f"message {number}: its content is a {kind}, not text")
        if role != due:
            raise ValueError(f"message {number} is the {role}'s, the {due}'s is due")


def _find_turns(row: dict | list) -> list[dict]:
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


def as_messages(row: dict | list) -> list[dict]:
    """The messages of one row, checked: a whole conversation that ends in an answer.

    Known are {"conversations": [...]} or {"messages": [...]} of {"role", "content"}
    or, as in ShareGPT, {"from", "value"}; a bare list of those; and {"instruction",
    "input", "output"}, as in Alpaca. Raises `ValueError` with what is wrong.
    """
    messages = []
    for turn in _find_turns(row):
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


def _parse_conversation(raw: bytes | dict | list) -> dict:
    """A raw row -> {"conversations": messages} and whatever else the row holds."""
    row = parse_json(raw) if isinstance(raw, bytes) else raw
    return {**(row if isinstance(row, dict) else {}), "conversations": as_messages(row)}


def read_conversations(path: str | Path, skip: bool = False) -> Iterator[dict]:
    """Yield {"conversations": messages, ...} from a file in any known format.

    `path` may also name a public set, as in `read_texts`. Other fields of a row are
    kept. A bad one raises `ValueError`, or is counted and reported with `skip`.
    """
    if names_set(str(path)) and not Path(path).exists():
        rows = enumerate(fetch_rows(str(path)), 1)
        numbered = ((f"row {number}", row) for number, row in rows)
    else:
        numbered = format_of(path)[0](path)
    return keep_good(path, numbered, _parse_conversation, skip)
