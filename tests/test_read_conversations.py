"""Conversations from files: each format, and what is wrong with a row."""

import json

import pytest

from minillm.support import conversations
from minillm.support.conversations import (
    as_messages,
    check_messages,
    read_conversations,
)

EXCHANGE = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 = 5."},
]

FORMATS = {
    "ours": {"conversations": EXCHANGE, "kind": "sum"},
    "messages": {"messages": EXCHANGE},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": EXCHANGE[0]["content"]},
            {"from": "gpt", "value": EXCHANGE[1]["content"]},
        ]
    },
    "alpaca": {"instruction": "What is 2 + 3?", "input": "", "output": "2 + 3 = 5."},
    "role list": EXCHANGE,
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_told_apart(tmp_path, name):
    rows = [FORMATS[name]] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.json").write_text(json.dumps(rows))
    for path in sorted(tmp_path.iterdir()):
        read = list(read_conversations(path))
        assert [row["conversations"] for row in read] == [EXCHANGE, EXCHANGE]
    if name == "ours":
        assert read[0]["kind"] == "sum"


def test_alpaca_input_follows_the_instruction():
    row = {"instruction": "Add.", "input": "2 and 3", "output": "5"}
    assert as_messages(row)[0]["content"] == "Add.\n2 and 3"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{oops", "not JSON|Expecting"),
        ('[{"role": "us', "not JSON: Unterminated string starting at column 11"),
        pytest.param("[" * 100_000, "brackets are nested too deeply", id="deep"),
        pytest.param("b" * 17_000_000, "longer than 16 MB", id="long"),
        ('{"text": "a story"}', "none of the known formats.*text"),
        ("3", "none of the known formats"),
        ('{"conversations": []}', "empty conversation"),
        ('{"conversations": [{"role": "user", "content": "hi"}]}', "no answer"),
        ('{"instruction": "Add.", "output": ""}', "message 2, the assistant's, is"),
        ('{"instruction": "Add."}', "NoneType"),
        ('{"conversations": [{"from": "bing", "value": "hi"}]}', "role 'bing'"),
    ],
)
def test_bad_rows_are_named_with_file_and_line(tmp_path, capsys, line, fault):
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps(EXCHANGE) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"chats\.jsonl, line 2: .*({fault})"):
        list(read_conversations(path))
    assert len(list(read_conversations(path, skip=True))) == 1
    assert "skipped 1, the first" in capsys.readouterr().err


def test_bad_items_of_a_list_and_unknown_formats(tmp_path):
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([{"conversations": EXCHANGE}, {"text": "?"}]))
    with pytest.raises(ValueError, match=r"chats\.json, item 2: .*known formats"):
        list(read_conversations(path))
    with pytest.raises(ValueError, match="unknown format '.pdf'"):
        read_conversations("chats.pdf")


def test_alpaca_as_csv(tmp_path):
    path = tmp_path / "chats.csv"
    path.write_text("instruction,input,output\nWhat is 2 + 3?,,2 + 3 = 5.\n")
    assert next(read_conversations(path))["conversations"] == EXCHANGE


def test_public_sets_are_read_by_name(monkeypatch, capsys):
    """Alpaca's shape as in BelleGroup's sets, ours as in MiniMind's files."""
    asked = []

    def fetch(name):
        asked.append(name)
        yield FORMATS["alpaca"]
        yield FORMATS["ours"]
        yield {"text": "?"}

    monkeypatch.setattr(conversations, "fetch_rows", fetch)
    names = "BelleGroup/train_0.5M_CN", "jingyaogong/minimind_dataset:sft.jsonl"
    for name in names:
        rows = read_conversations(name)
        assert [next(rows)["conversations"] for _ in range(2)] == [EXCHANGE] * 2
        with pytest.raises(ValueError, match="row 3: in none of the known formats"):
            next(rows)
    assert asked == list(names)
    assert len(list(read_conversations(names[0], skip=True))) == 2
    assert "skipped 1, the first" in capsys.readouterr().err


def test_a_missing_file_and_a_set_out_of_reach(tmp_path, monkeypatch):
    with pytest.raises(OSError):
        list(read_conversations(tmp_path / "no.jsonl"))
    monkeypatch.setenv("MINILLM_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="run `minillm data convert BelleGroup"):
        list(read_conversations("BelleGroup/train_0.5M_CN"))


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "an empty conversation"),
        ([{"role": "tool", "content": "5"}], "message 1: role 'tool' is none of"),
        ([{"content": "5"}], "message 1: role None is none of"),
        ([EXCHANGE[0], {"role": "assistant", "content": 5}], "message 2: .* a int"),
        ([EXCHANGE[1]], "message 1 is the assistant's, the user's is due"),
        ([SYSTEM, EXCHANGE[1]], "message 2 is the assistant's, the user's is due"),
        ([SYSTEM, SYSTEM], "message 2 is the system's, the user's is due"),
        ([*EXCHANGE, SYSTEM], "message 3 is the system's, the user's is due"),
        ([EXCHANGE[0]] * 2, "message 2 is the user's, the assistant's is due"),
    ],
)
def test_what_is_not_a_conversation_is_refused(messages, fault):
    with pytest.raises(ValueError, match=fault):
        check_messages(messages)


def test_what_is_a_conversation_is_accepted():
    for messages in [SYSTEM], [SYSTEM, EXCHANGE[0]], EXCHANGE * 3, EXCHANGE[:1]:
        check_messages(messages)


def test_a_deep_list_and_a_list_of_lists(tmp_path):
    path = tmp_path / "chats.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"chats\.json: its brackets are nested too"):
        list(read_conversations(path))
    path.write_text(json.dumps([EXCHANGE, EXCHANGE]))
    assert [row["conversations"] for row in read_conversations(path)] == [EXCHANGE] * 2
