"""Chapter 11: turns and their cache, a full context, what a chat window shows."""

import gc
import threading
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import chat as module
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
            torch.testing.assert_close(kept.keys[:, :, :S], computed.keys[:, :, :S])


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
    layer, calls = chat.model.layers[1], []
    forward = type(layer).forward

    def interrupt(self, *arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return forward(self, *arguments)

    monkeypatch.setattr(type(layer), "forward", interrupt)
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
