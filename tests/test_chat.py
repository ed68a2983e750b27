"""Chapter 11: turns and their cache, and a context that runs out."""

import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_chat import GREEDY, TEXTS, fresh, make_model, make_tokenizer

from minillm.attention import KVCache
from minillm.chat import Chat, token_probabilities
from minillm.sft import SFTDataset
from minillm.tokenizer import SPECIAL_TOKENS, train_bpe
from minillm.transformer import Transformer


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


@pytest.fixture
def chat(model, tokenizer) -> Chat:
    return Chat(model, tokenizer, config=GREEDY)


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


def test_undo_gives_memory_back(model, tokenizer):
    """After an overflow and its undoing, replies are those of a chat that began so."""
    chat = Chat(model, tokenizer, "Be brief.", GREEDY)
    left_out = []
    for number in range(10):
        chat.reply(f"Who is number {number}?")
        left_out.append(chat.forgotten)
    assert left_out[-1] > 6
    for number in range(9, 0, -1):
        assert chat.undo() == f"Who is number {number}?"
        assert chat.forgotten == left_out[number - 1]
        again = Chat(model, tokenizer, "Be brief.", GREEDY)
        again.messages = list(chat.messages)
        assert chat.reply("And?") == again.reply("And?")
        assert chat.undo() == "And?" and chat.forgotten == left_out[number - 1]
    chat.undo()
    assert (chat.messages, chat.forgotten) == ([], 0)


def test_undo_of_a_loaded_conversation_that_never_fitted(chat):
    long = {"role": "user", "content": "Tim the fox. " * 100}
    chat.messages = [long, {"role": "assistant", "content": "Yes."}]
    chat.reply("Who is Tim?")
    assert chat.forgotten == 2
    assert chat.undo() == "Who is Tim?" and len(chat.messages) == 2
    assert chat.reply("And the kite?") == fresh_after(chat)


def fresh_after(chat):
    """The last reply, by a chat that has only the last question."""
    other = Chat(chat.model, chat.tokenizer, config=chat.config)
    return other.reply(chat.messages[-2]["content"])


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
    ids = chat.prompt([{"role": "user", "content": text}])
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


def test_an_empty_file_holds_no_conversation(chat, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="empty.jsonl holds nothing to read"):
        chat.load(tmp_path / "empty.jsonl")


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
