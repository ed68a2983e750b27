"""The chat in a terminal: lines that are said, commands, and what goes wrong."""

import re
from dataclasses import replace

import pytest
from tiny_chat import GREEDY, fresh, make_model, make_tokenizer

from minillm.app.terminal import Terminal, converse
from minillm.chat import Chat


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def chat(model, tokenizer) -> Chat:
    return Chat(model, tokenizer, config=GREEDY)


@pytest.fixture
def terminal(model, tokenizer):
    other = Chat(model, tokenizer, config=replace(GREEDY, max_new_tokens=3))
    return Terminal(Chat(model, tokenizer, config=GREEDY), lambda: other)


def test_lines_are_said_and_commands_obeyed(terminal, capsys, tmp_path):
    chat = terminal.chat
    assert not terminal.onecmd("Who is Tim?") and len(chat.messages) == 2
    reply = chat.messages[-1]["content"]
    assert reply in capsys.readouterr().out
    terminal.onecmd(f"/save {tmp_path}/a/talk.jsonl")
    terminal.onecmd("/reset")
    assert chat.messages == []
    terminal.onecmd(f"/load {tmp_path}/a/talk.jsonl")
    assert len(chat.messages) == 2 and "> Who is Tim?" in capsys.readouterr().out
    terminal.onecmd("/retry")
    assert len(chat.messages) == 2 and chat.messages[-1]["content"] == reply
    terminal.onecmd("/params temperature=0.5 do_sample=true seed=7")
    assert (chat.config.temperature, chat.config.seed) == (0.5, 7)
    assert "temperature=0.5" in capsys.readouterr().out
    terminal.onecmd("/base")
    assert terminal.chat is not chat and len(terminal.chat.messages) == 2
    terminal.onecmd("/base")
    assert terminal.chat is chat
    terminal.onecmd("/system Be brief.")
    assert chat.system == "Be brief." and chat.messages == []
    terminal.onecmd("/system")
    assert chat.system is None
    assert terminal.onecmd("/quit") and terminal.onecmd("/exit")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("/sing", "no command /sing; /help lists them"),
        ("/retry", "nothing to take back"),
        ("/save", "nothing to save"),
        ("/load no/such.jsonl", "No such file"),
        ("/params heat=1", "no setting heat; there are max_new_tokens"),
        ("/params top_p=2", "top_p=2 is out of range"),
        ("/params top_p=high", "Expecting value"),
        ('/params top_p="1"', "not supported"),
        ("Tim the fox. " * 100, "message is too long"),
    ],
)
def test_what_goes_wrong_is_a_line(terminal, capsys, line, fault):
    assert not terminal.onecmd(line) and terminal.chat.messages == []
    assert fault in capsys.readouterr().out


def test_help_names_every_command(terminal, capsys):
    terminal.onecmd("/help")
    said = capsys.readouterr().out
    names = [n[3:] for n in dir(terminal) if n.startswith("do_")]
    assert all(f"/{n}" in said for n in names if n not in ("help", "exit"))
    assert set(re.findall(r"/([a-z]+)", said)) <= set(names)


def test_no_other_model(chat, capsys):
    Terminal(chat).onecmd("/base")
    assert "no other model" in capsys.readouterr().out


def test_ctrl_c_stops_a_reply_and_the_talk_goes_on(terminal, monkeypatch, capsys):
    chat, calls = terminal.chat, []
    pieces = chat.tokenizer.stream

    def interrupt(ids):
        for piece in pieces(ids):
            calls.append(piece)
            if len(calls) == 3:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(chat.tokenizer, "stream", interrupt)
    assert not terminal.onecmd("Who is Tim?")
    monkeypatch.undo()
    assert "(stopped)" in capsys.readouterr().out
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(calls[:2])}
    wanted = fresh(chat, "Go on.")
    terminal.onecmd("Go on.")
    assert chat.messages[-1]["content"] == wanted


def test_a_full_context_is_said(terminal, capsys):
    for number in range(8):
        terminal.onecmd(f"Who is number {number}?")
    said = capsys.readouterr().out
    out = terminal.chat.forgotten
    assert out and f"the context is full: the first {out} messages are out" in said


def test_lines_are_read_to_the_end(monkeypatch, chat):
    said = iter(["Who is Tim?", "", "  /retry ", "?", "!", EOFError])

    def ask(prompt):
        assert prompt == ""  # nothing is prompted where nobody types
        line = next(said)
        if line is EOFError:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", ask)
    converse(chat)
    asked = [m["content"] for m in chat.messages if m["role"] == "user"]
    assert asked == ["Who is Tim?", "?", "!"]
    said = iter(["/reset", "Who is Tim?", "/quit", "never"])
    converse(chat)
    assert len(chat.messages) == 2 and next(said) == "never"


def test_ctrl_c_at_the_prompt_leaves(monkeypatch, chat):
    def interrupt(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    converse(chat)
    assert chat.messages == []
