"""Chapter 11: turns and their cache, a full context, what a chat window shows."""

import gc
import re
import threading
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import chat as module
from minillm.attention import KVCache
from minillm.chat import Chat, ChatWidget, chat_html, token_probabilities
from minillm.generation import GenerationConfig
from minillm.sft import CHATML, SFTDataset
from minillm.tokenizer import SPECIAL_TOKENS, train_bpe
from minillm.transformer import ModelConfig, Transformer

TEXTS = ["Once upon a time, there was a brave fox named Tim. He had a red kite."] * 4
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=12)


@pytest.fixture(scope="module")
def tokenizer():
    made = train_bpe(TEXTS, vocab_size=290)
    made.chat_template = CHATML
    return made


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(3)
    sizes = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5)
    sizes |= dict(max_position_embeddings=256)
    return Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes)).double()


@pytest.fixture
def chat(model, tokenizer) -> Chat:
    return Chat(model, tokenizer, config=GREEDY)


def fresh(chat: Chat, text: str) -> str:
    """The same reply by a chat that has nothing in its cache."""
    other = Chat(chat.model, chat.tokenizer, chat.system, chat.config)
    other.messages, other.forgotten = list(chat.messages), chat.forgotten
    return other.reply(text)


def test_turns_are_kept(chat):
    first = chat.reply("Who is Tim?")
    assert chat.messages == [
        {"role": "user", "content": "Who is Tim?"},
        {"role": "assistant", "content": first},
    ]
    chat.reply("And who had the kite?")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    chat.reset()
    assert chat.messages == [] and chat.reply("Who is Tim?") == first


@settings(max_examples=15, deadline=None)
@given(st.lists(st.text(max_size=15), min_size=2, max_size=5), st.booleans())
def test_cached_replies_are_those_computed_afresh(model, tokenizer, texts, system):
    chat = Chat(model, tokenizer, "Be brief." if system else None, GREEDY)
    for number, text in enumerate(texts):
        wanted = fresh(chat, text)
        assert chat.reply(text) == wanted
        assert chat.reused > 0 or number == 0 or chat.forgotten


def test_cache_holds_what_it_says(chat, model):
    for text in ("Who is Tim?", "And the kite?"):
        chat.reply(text)
        inputs = torch.tensor([chat.cached[: chat.cache[0].length]])
        cache = model.new_cache()
        with torch.no_grad():
            model(inputs, cache=cache)
        for kept, computed in zip(chat.cache, cache, strict=True):
            S = kept.length
            pair = kept.keys[:, :, :S], computed.keys[:, :, :S]
            torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)


def test_second_turn_computes_only_what_is_new(chat):
    """At least the first prompt; how much more depends on how the reply is spelt."""
    chat.reply("Who is Tim?")
    prompt, _ = chat.template.encode(chat.messages[:1], add_generation_prompt=True)
    chat.reply("And the kite?")
    assert chat.reused >= len(prompt)


def test_stopped_reply_is_kept_and_the_next_is_right(chat):
    stream = chat.stream("Tell me a story about Tim.")
    start = next(stream) + next(stream)
    stream.close()
    assert chat.finish_reason == "stopped"
    assert chat.messages[-1] == {"role": "assistant", "content": start}
    wanted = fresh(chat, "Go on.")
    assert chat.reply("Go on.") == wanted


def test_interrupted_in_the_middle_of_a_layer(chat, monkeypatch):
    chat.reply("Who is Tim?")
    calls, append = [], KVCache.append

    def interrupt(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return append(self, *arguments)

    monkeypatch.setattr(KVCache, "append", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        chat.reply("And the kite?")
    monkeypatch.undo()
    assert chat.messages[-1]["role"] == "assistant"
    assert len({kept.length for kept in chat.cache}) == 2  # one layer is ahead
    wanted = fresh(chat, "Go on.")
    assert chat.reply("Go on.") == wanted
    del caught


def test_oldest_turns_are_left_out_and_it_is_said(model, tokenizer):
    chat = Chat(model, tokenizer, "Be brief.", GREEDY)
    for number in range(8):
        wanted = fresh(chat, f"Who is number {number}?")
        assert chat.reply(f"Who is number {number}?") == wanted
        assert len(chat.cached) <= chat.context
    assert chat.forgotten > 0 and chat.forgotten % 2 == 0
    assert len(chat.messages) == 16
    seen = chat.tokenizer.decode(chat.cached)
    assert "Be brief." in seen and "number 7" in seen and "number 0" not in seen
    assert "no longer sees" in chat_html(chat).replace("\n", " ")


def test_message_that_can_never_fit(chat):
    chat.reply("Who is Tim?")
    before = list(chat.messages)
    with pytest.raises(ValueError, match="message is too long: .* room for 244 and"):
        chat.reply("Tim the fox. " * 100)
    assert chat.messages == before
    assert chat.reply("Who is Tim?") is not None


def test_reply_ends_where_it_says(model, tokenizer):
    chat = Chat(model, tokenizer, config=replace(GREEDY, max_new_tokens=3))
    chat.reply("Who is Tim?")
    assert chat.finish_reason == "length"

    class Ending(torch.nn.Module):
        """A model that says one word and ends the turn."""

        config, lm_head = model.config, model.lm_head

        def new_cache(self):
            return model.new_cache()

        def forward(self, ids, *arguments, **options):
            logits = model(ids, *arguments, **options)
            wanted = word if ids.shape[1] > 1 else 2
            return torch.zeros_like(logits).index_fill(-1, torch.tensor([wanted]), 9.0)

    word = tokenizer.encode("fox")[0]
    chat = Chat(Ending(), tokenizer, config=GREEDY)
    assert chat.reply("Who is Tim?") == tokenizer.decode([word])
    assert chat.finish_reason == "stop"
    chat = Chat(model, tokenizer, config=GREEDY)
    text = chat.reply("Who is Tim?")
    chat = Chat(model, tokenizer, config=replace(GREEDY, stop_strings=(text[2:4],)))
    assert chat.reply("Who is Tim?") == text[: text.index(text[2:4])]
    assert chat.finish_reason == "stop"


def test_an_answer_longer_than_the_context_is_cut_and_the_talk_goes_on(chat):
    chat.config = replace(GREEDY, max_new_tokens=1000, eos_token_id=())
    chat.template.__dict__["end_token_id"] = -1  # it never ends
    chat.reply("Who is Tim?")
    assert chat.finish_reason == "length" and len(chat.cached) == chat.context
    assert chat.messages[-1]["role"] == "assistant"
    wanted = fresh(chat, "And?")
    chat.config = replace(chat.config, max_new_tokens=4)
    assert wanted.startswith(chat.reply("And?"))
    assert chat.forgotten == 2  # the long exchange no longer fits


def test_undo(chat):
    chat.reply("Who is Tim?")
    first = chat.reply("And the kite?")
    assert chat.undo() == "And the kite?"
    assert len(chat.messages) == 2 and chat.reply("And the kite?") == first
    chat.reset()
    with pytest.raises(ValueError, match="nothing to take back"):
        chat.undo()


def test_save_and_load(chat, tmp_path):
    chat.system = "Be brief."
    chat.reply("Who is <|im_end|>?")
    chat.save(tmp_path / "talk.jsonl")
    other = Chat(chat.model, chat.tokenizer, config=GREEDY)
    other.load(tmp_path / "talk.jsonl")
    assert (other.system, other.messages) == (chat.system, chat.messages)
    assert other.reply("And?") == chat.reply("And?")
    assert len(SFTDataset([chat.messages], chat.tokenizer, 256)) == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from([*SPECIAL_TOKENS, "<|im_", "end|>", "system\n", "\n"])
        | st.text(max_size=4),
        max_size=5,
    ).map("".join)
)
def test_typed_special_tokens_end_nothing(model, tokenizer, text):
    chat = Chat(model, tokenizer, "Be brief.", GREEDY)
    chat.messages.append({"role": "user", "content": text})
    ids = chat.prompt(room=12)
    assert (ids.count(0), ids.count(1), ids.count(2)) == (1, 3, 2)
    assert text in tokenizer.decode(ids)


def test_model_without_template(model):
    with pytest.raises(ValueError, match="has no chat template"):
        Chat(model, train_bpe(TEXTS, vocab_size=280))


@pytest.mark.slow
def test_memory_is_flat(chat):
    sizes = []
    for turn in range(100):
        chat.config = replace(GREEDY, max_new_tokens=2)
        chat.reply(f"Number {turn}?")
        if turn % 20 == 19:
            gc.collect()
            kept = [layer.keys.numel() for layer in chat.cache]
            sizes.append((kept, len(chat.cached) <= chat.context))
    assert sizes[1:] == [sizes[1]] * 4


def test_probabilities_of_a_reply(chat, model):
    chat.reply("Who is Tim?")
    tokens = token_probabilities(chat)
    text = "".join(piece for piece, _ in tokens)
    assert text.endswith("<|im_end|>") or "\ufffd" in text
    assert all(0 <= share <= 1 for _, share in tokens)
    share = tokens[0][1]  # greedy: nothing was likelier
    with torch.no_grad():
        ids, _ = chat.template.encode(chat.messages[:1], add_generation_prompt=True)
        best = model(torch.tensor([ids]))[0, -1].softmax(-1).max()
    assert share == pytest.approx(best.item(), abs=1e-6)


def test_reply_is_that_of_transformers(model, tokenizer, tmp_path):
    """From the saved folder, with its own template and settings, greedy."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = Transformer(model.config)
    plain.load_state_dict(model.state_dict())
    plain.config.eos_token_id = 2
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path)
    words = AutoTokenizer.from_pretrained(tmp_path)
    chat = Chat(plain, tokenizer, "Be brief.", replace(GREEDY, max_new_tokens=40))
    for text in ("Who is Tim?", "What did he have?"):
        messages = [{"role": "system", "content": "Be brief."}, *chat.messages]
        messages.append({"role": "user", "content": text})
        inputs = words.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = peer.generate(**inputs, max_new_tokens=40, do_sample=False)
        new = made[0, inputs["input_ids"].shape[1] :]
        wanted = words.decode(new, skip_special_tokens=True)
        assert chat.reply(text) == wanted


# ---------------------------------------------------------------- the window


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
    assert module.CHAT_CONFIG.temperature != 1.3


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


def test_an_empty_file_holds_no_conversation(chat, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl holds nothing to read"):
        chat.load(tmp_path / "empty.jsonl")


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
    rules = dict(re.findall(r"\.mini-chat (?:\.)?(\w+) \{([^}]*)\}", module.STYLE))
    ink = {
        name: re.findall(r"[; ]?color: (#\w+)", rule) for name, rule in rules.items()
    }
    ground = {n: re.findall(r"background: (#\w+)", rule) for n, rule in rules.items()}
    assert "opacity" not in module.STYLE and ink["forgotten"] and ink["div"]
    for place in ("user", "assistant", "note"):
        for letters in ink["div"] + ink["forgotten"]:
            assert contrast(letters, ground[place][0]) > 4.5, (place, letters)
    for mark in ("right", "wrong"):
        assert contrast(ink[mark][0], ground[mark][0]) > 4.5


# ---------------------------------------------------------------- the terminal


@pytest.fixture
def terminal(model, tokenizer):
    other = Chat(model, tokenizer, config=replace(GREEDY, max_new_tokens=3))
    return module.Terminal(Chat(model, tokenizer, config=GREEDY), lambda: other)


def test_lines_are_said_and_commands_obeyed(terminal, capsys, tmp_path):
    chat = terminal.chat
    assert terminal.obey("Who is Tim?") and len(chat.messages) == 2
    reply = chat.messages[-1]["content"]
    assert reply in capsys.readouterr().out
    terminal.obey(f"/save {tmp_path}/a/talk.jsonl")
    terminal.obey("/reset")
    assert chat.messages == []
    terminal.obey(f"/load {tmp_path}/a/talk.jsonl")
    assert len(chat.messages) == 2 and "> Who is Tim?" in capsys.readouterr().out
    terminal.obey("/retry")
    assert len(chat.messages) == 2 and chat.messages[-1]["content"] == reply
    terminal.obey("/params temperature=0.5 do_sample=true seed=7")
    assert (chat.config.temperature, chat.config.seed) == (0.5, 7)
    assert "temperature=0.5" in capsys.readouterr().out
    terminal.obey("/base")
    assert terminal.chat is not chat and len(terminal.chat.messages) == 2
    terminal.obey("/base")
    assert terminal.chat is chat
    terminal.obey("/system Be brief.")
    assert chat.system == "Be brief." and chat.messages == []
    terminal.obey("/system")
    assert chat.system is None
    assert not terminal.obey("/quit") and not terminal.obey("/exit")


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
    assert terminal.obey(line) and terminal.chat.messages == []
    assert fault in capsys.readouterr().out


def test_help_names_every_command(terminal, capsys):
    terminal.obey("/help")
    said = capsys.readouterr().out
    assert all(f"/{name}" in said for name in terminal.commands if name != "help")


def test_no_other_model(chat, capsys):
    module.Terminal(chat).obey("/base")
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
    assert terminal.obey("Who is Tim?")
    monkeypatch.undo()
    assert "(stopped)" in capsys.readouterr().out
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(calls[:2])}
    wanted = fresh(chat, "Go on.")
    terminal.obey("Go on.")
    assert chat.messages[-1]["content"] == wanted


def test_a_full_context_is_said(terminal, capsys):
    for number in range(8):
        terminal.obey(f"Who is number {number}?")
    said = capsys.readouterr().out
    out = terminal.chat.forgotten
    assert out and f"the context is full: the first {out} messages are out" in said


def test_lines_are_read_to_the_end(monkeypatch, chat):
    lines = iter(["Hello", "", "  /reset ", EOFError])

    def ask(prompt):
        line = next(lines)
        if line is EOFError:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", ask)
    assert list(module.typed_lines()) == ["Hello", "/reset"]
    said = iter(["Who is Tim?", "/quit", "never"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(said))
    module.converse(chat)
    assert len(chat.messages) == 2 and next(said) == "never"


def test_pipeline_of_transformers_gives_the_same_reply(model, tokenizer, tmp_path):
    from transformers import pipeline

    plain = Transformer(model.config).double()
    plain.load_state_dict(model.state_dict())
    plain.config.eos_token_id = 2
    plain.float().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pipe = pipeline("text-generation", model=str(tmp_path), device="cpu")
    chat = Chat(plain, tokenizer, "Be brief.", replace(GREEDY, max_new_tokens=20))
    for text in ("Who is Tim?", "What did he have?"):
        messages = [*chat.head, *chat.messages, {"role": "user", "content": text}]
        made = pipe(messages, max_new_tokens=20, do_sample=False)
        assert chat.reply(text) == made[0]["generated_text"][-1]["content"]


@pytest.mark.slow
def test_memory_of_the_process_is_flat(chat):
    """A hundred turns more take no more memory than the first fifty."""
    resource = pytest.importorskip("resource")

    def talk(turns):
        for turn in range(turns):
            chat.config = replace(GREEDY, max_new_tokens=2)
            chat.reply(f"Number {turn}?")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB

    before = talk(50)
    assert talk(100) - before < 8
