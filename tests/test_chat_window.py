"""The chat window: what it shows, what its controls do, and that all can be read."""

import re
import threading
import time
from dataclasses import replace

import pytest
from tiny_chat import GREEDY, make_model, make_tokenizer

from minillm.app.chat_window import STYLE, ChatWidget, chat_html
from minillm.chat import CHAT_CONFIG, Chat


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def chat(model, tokenizer) -> Chat:
    return Chat(model, tokenizer, config=GREEDY)


def test_window_shows_text_as_text(chat):
    chat.messages = [
        {"role": "user", "content": "<script>alert(1)</script>"},
        {"role": "assistant", "content": "<img src=x onerror=alert(1)>"},
    ]
    for tokens in (False, True):
        shown = chat_html(chat, "<b>half", lambda _: (False, "<i>bad</i>"), tokens)
        assert "<script" not in shown and "<img" not in shown
        assert "&lt;script&gt;" in shown and "&lt;b&gt;half" in shown
        assert "&lt;i&gt;bad" in shown


def test_where_the_memory_ends_is_shown(chat):
    for number in range(8):
        chat.reply(f"Who is number {number}?")
    shown = chat_html(chat)
    assert shown.count("forgotten'") == chat.forgotten > 0
    assert shown.count("no longer sees") == 1
    while chat.forgotten:
        chat.undo()
    assert "no longer sees" not in chat_html(chat)


def test_window_asks_both_and_judges(model, tokenizer):
    chats = [Chat(model, tokenizer, config=GREEDY) for _ in range(2)]
    seen = []

    def checker(reply):
        seen.append(reply)
        return (True, "consistent") if reply else None

    window = ChatWidget(*chats, checker=checker)
    window.ask("Who is Tim?", wait=True)
    assert len(chats[0].messages) == len(chats[1].messages) == 2
    assert chats[0].messages[-1]["content"] in seen
    assert all("consistent" in pane.value for pane in window.panes)
    bundle = window._repr_mimebundle_()
    assert "Who is Tim?" in bundle["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


class Slow:
    """The model, slowed so that there is time to stop it; it notes the threads."""

    def __init__(self, model, threads):
        self.model, self.threads = model, threads
        self.config, self.lm_head = model.config, model.lm_head

    def eval(self):
        return self

    def new_cache(self):
        return self.model.new_cache()

    def __call__(self, *arguments, **options):
        self.threads.add(threading.current_thread())
        time.sleep(0.005)
        return self.model(*arguments, **options)


def test_window_leaves_the_kernel_free_and_stops(model, tokenizer):
    threads = set()
    chat = Chat(Slow(model, threads), tokenizer, config=replace(GREEDY, seed=1))
    chat.config = replace(chat.config, max_new_tokens=200)
    chat.context = 10_000
    window = ChatWidget(chat)
    window.controls["entry"].value = "Tell me a story."
    window.controls["send"].click()
    assert window.controls["entry"].value == "" and window.busy
    with pytest.raises(RuntimeError, match="stop it or wait"):
        window.ask("Again?")
    until = time.monotonic() + 5
    while not chat.cached[20:] and time.monotonic() < until:
        time.sleep(0.005)
    window.controls["stop"].click()
    assert not window.busy and chat.finish_reason == "stopped"
    assert threading.main_thread() not in threads
    assert "stopped" in window.status.value
    chat.config = replace(chat.config, max_new_tokens=4)
    window.controls["retry"].click()
    window.worker.join()
    assert len(chat.messages) == 2 and chat.config.seed == 2
    assert chat.messages[0]["content"] == "Tell me a story."
    window.controls["new"].click()
    assert chat.messages == []


def test_window_says_what_went_wrong(chat):
    window = ChatWidget(chat, Chat(chat.model, chat.tokenizer, config=GREEDY))
    window.chats[1].context = 20
    window.ask("Who is Tim, and who had the red kite?", wait=True)
    assert "message is too long" in window.status.value
    assert all(other.messages == [] for other in window.chats)


def test_sampling_controls(chat):
    window = ChatWidget(chat)
    window.controls["temperature"].value = 0.0
    assert not chat.config.do_sample
    window.controls["temperature"].value = 1.3
    window.controls["top_p"].value = 0.5
    assert chat.config.do_sample and chat.config.temperature == pytest.approx(1.3)
    assert chat.config.top_p == pytest.approx(0.5)
    assert CHAT_CONFIG.temperature != 1.3


def test_enter_sends(chat):
    window = ChatWidget(chat)
    window.controls["entry"].value = "Who is Tim?"
    window.controls["entry"]._handle_custom_msg({"event": "submit"}, [])
    window.worker.join()
    assert chat.messages[0]["content"] == "Who is Tim?"


def test_window_saves_and_loads(chat, tmp_path):
    window = ChatWidget(chat, Chat(chat.model, chat.tokenizer, config=GREEDY))
    window.controls["file"].value = str(tmp_path / "new/talk.jsonl")
    window.controls["save"].click()
    assert "nothing to save" in window.status.value
    window.ask("Who is Tim?", wait=True)
    window.controls["save"].click()
    assert "saved in" in window.status.value
    said = list(chat.messages)
    window.controls["new"].click()
    assert chat.messages == []
    window.controls["load"].click()
    assert all(other.messages == said for other in window.chats)
    assert "Who is Tim?" in window.panes[1].value
    for name, fault in {"none.jsonl": "No such file", "bad.jsonl": "line 1"}.items():
        (tmp_path / "bad.jsonl").write_text("oops\n")
        window.controls["file"].value = str(tmp_path / name)
        window.controls["load"].click()
        assert fault in window.status.value and chat.messages == said


def test_every_control_has_a_label(chat):
    window = ChatWidget(chat)
    for name, control in window.controls.items():
        assert control.description, name
        assert not hasattr(control, "icon") or control.tooltip, name
    chat.messages = [{"role": "user", "content": "Hi!"}]
    assert "role='log' aria-label='conversation'" in chat_html(chat)
    assert "role='group' aria-label='user'" in chat_html(chat)


def luminance(color):
    """How bright "#rgb" or "#rrggbb" is, as WCAG 2 measures it."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    shares = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
    linear = [((s + 0.055) / 1.055) ** 2.4 if s > 0.04 else s / 12.92 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink, ground):
    dark, light = sorted(map(luminance, (ink, ground)))
    return (light + 0.05) / (dark + 0.05)


def test_every_letter_of_a_conversation_can_be_read():
    """4.5 to 1, on light and dark pages alike: each ink has a ground of its own."""
    rules = dict(re.findall(r"\.mini-chat (?:\.)?(\w+) \{([^}]*)\}", STYLE))
    ink = {
        name: re.findall(r"[; ]?color: (#\w+)", rule) for name, rule in rules.items()
    }
    ground = {n: re.findall(r"background: (#\w+)", rule) for n, rule in rules.items()}
    assert "opacity" not in STYLE and ink["forgotten"] and ink["div"]
    for place in ("user", "assistant", "note"):
        for letters in ink["div"] + ink["forgotten"]:
            assert contrast(letters, ground[place][0]) > 4.5, (place, letters)
    for mark in ("right", "wrong"):
        assert contrast(ink[mark][0], ground[mark][0]) > 4.5
