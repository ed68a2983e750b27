"""Chapter 10: ids as in transformers, a mask over answers only, data told apart."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import sft
from minillm.app.training import Run, RunConfig
from minillm.optimization import cross_entropy
from minillm.tokenizer import SPECIAL_TOKENS, Tokenizer, train_bpe
from minillm.transformer import ModelConfig, Transformer

TEXTS = [
    "Once upon a time, there was a brave fox named Tim. He had a red kite.",
    "user\nassistant\nsystem\nWhat color is the kite? The kite is red.",
    "Tell me a story about a cat named Mia. What is 2 + 3? 2 + 3 = 5.",
] * 3
EXCHANGE = [
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 = 5."},
]
TWO_TURNS = [
    {"role": "system", "content": "Be brief."},
    *EXCHANGE,
    {"role": "user", "content": "And who had the kite?"},
    {"role": "assistant", "content": "Tim the fox."},
]
END = 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = train_bpe(TEXTS, vocab_size=330)
    made.chat_template = sft.CHATML
    return made


@pytest.fixture(scope="module")
def reference(tokenizer, tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def template(tokenizer) -> sft.ChatTemplate:
    return sft.ChatTemplate(tokenizer)


def small_model(tokenizer, **options) -> Transformer:
    torch.manual_seed(0)
    sizes = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, **options)
    return Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes))


contents = st.text(
    st.sampled_from(" \n\t.,?abcTim2é狐🦊<|>_") | st.characters(codec="utf-8"),
    max_size=20,
)


def turns(texts: list[str], system: str | None) -> list[dict]:
    head = [] if system is None else [{"role": "system", "content": system}]
    roles = ("user", "assistant")
    return head + [
        {"role": roles[n % 2], "content": text} for n, text in enumerate(texts)
    ]


# ---------------------------------------------------------------- template and mask


@settings(max_examples=150, deadline=None)
@given(st.lists(contents, min_size=1, max_size=5), contents | st.none(), st.booleans())
def test_text_and_ids_are_those_of_transformers(
    template, reference, texts, system, prompt
):
    messages = turns(texts, system)
    text = reference.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=prompt
    )
    assert template.render(messages, prompt) == text
    if any(name in m["content"] for m in messages for name in SPECIAL_TOKENS):
        return
    ids = reference.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=prompt, return_dict=False
    )
    assert template.encode(messages, prompt)[0] == ids


def test_known_conversation(template, tokenizer):
    ids, learned = template.encode(TWO_TURNS)
    assert tokenizer.decode(ids) == (
        "<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n"
        "<|im_start|>assistant\n2 + 3 = 5.<|im_end|>\n"
        "<|im_start|>user\nAnd who had the kite?<|im_end|>\n"
        "<|im_start|>assistant\nTim the fox.<|im_end|>\n"
    )
    kept = [number for number, mark in zip(ids, learned, strict=True) if mark]
    assert tokenizer.decode(kept) == "2 + 3 = 5.<|im_end|>Tim the fox.<|im_end|>"


nasty = st.lists(
    st.sampled_from(SPECIAL_TOKENS)
    | st.sampled_from(["<|im_", "end|>", "<", "|", ">", "start|>", "\n", "assistant"])
    | st.sampled_from(["\ue000", "\ue0000\ue000", "\ue0001\ue000"])
    | contents,
    max_size=6,
).map("".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(nasty, min_size=1, max_size=4), nasty | st.none())
def test_contents_never_become_special_tokens(template, tokenizer, texts, system):
    messages = turns(texts, system)
    ids, learned = template.encode(messages)
    assert ids.count(0) == 1  # <|endoftext|>, the beginning
    assert ids.count(1) == ids.count(2) == len(messages)
    assert tokenizer.decode(ids) == template.render(messages)
    ends = [n for n, number in enumerate(ids) if number == END and learned[n]]
    assert len(ends) == sum(m["role"] == "assistant" for m in messages)


@settings(max_examples=100, deadline=None)
@given(st.lists(nasty, min_size=2, max_size=4))
def test_learned_tokens_spell_the_answers(template, tokenizer, texts):
    messages = turns(texts[: len(texts) // 2 * 2], None)
    ids, learned = template.encode(messages)
    kept = tokenizer.decode([n for n, mark in zip(ids, learned, strict=True) if mark])
    wanted = [m["content"] for m in messages if m["role"] == "assistant"]
    if not any(text[:1].isspace() for text in wanted):
        assert kept == "".join(f"{text}<|im_end|>" for text in wanted)
    else:  # a token that also spells the prompt's last line break is not learned
        assert kept.endswith(wanted[-1].lstrip() + "<|im_end|>")


def test_answer_does_not_change_what_stands_before_it(template):
    ids, learned = template.encode(EXCHANGE)
    prompt, none = template.encode(EXCHANGE[:1], add_generation_prompt=True)
    assert ids[: len(prompt)] == prompt
    assert learned.index(True) == len(prompt) and not any(none)


def test_other_templates(tokenizer):
    llama = (
        "{{- bos_token }}{%- for message in messages %}"
        "{{- '<|im_start|>' + message.role + '\n\n' + message.content | trim }}"
        "{{- '<|im_end|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n\n' }}{% endif %}"
    )
    other = Tokenizer.__new__(Tokenizer)
    other.__dict__.update(tokenizer.__dict__)
    other.chat_template = llama
    spaced = [{**m, "content": f"  {m['content']} \n"} for m in TWO_TURNS]
    ids, learned = sft.ChatTemplate(other).encode(spaced)
    kept = [n for n, mark in zip(ids, learned, strict=True) if mark]
    assert other.decode(kept) == "2 + 3 = 5.<|im_end|>Tim the fox.<|im_end|>"

    other.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    with pytest.raises(ValueError, match="ends no answer"):
        sft.ChatTemplate(other).encode(EXCHANGE)
    other.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ValueError, match="refuses this conversation: no system role"):
        sft.ChatTemplate(other).encode(EXCHANGE)


def test_templates_run_in_a_sandbox(tokenizer):
    from jinja2.exceptions import SecurityError

    other = Tokenizer.__new__(Tokenizer)
    other.__dict__.update(tokenizer.__dict__)
    for attack in (
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
    ):
        other.chat_template = attack
        with pytest.raises(SecurityError):
            sft.ChatTemplate(other).render(EXCHANGE)


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "empty conversation"),
        ([{"role": "robot", "content": "hi"}], "message 1: role 'robot' is none of"),
        ([{"content": "hi"}], "role None"),
        ([EXCHANGE[0], EXCHANGE[0]], "message 2 is the user's, the assistant's is due"),
        ([EXCHANGE[1]], "message 1 is the assistant's, the user's is due"),
        ([*EXCHANGE, TWO_TURNS[0]], "message 3 is the system's, the user's is due"),
        ([{"role": "user", "content": None}], "content is a NoneType, not text"),
    ],
)
def test_what_is_no_conversation_is_refused(template, messages, fault):
    with pytest.raises(ValueError, match=fault):
        template.encode(messages)


def test_preparing_a_base_model(tokenizer, tmp_path):
    words, model = train_bpe(TEXTS, vocab_size=330), small_model(tokenizer)
    sft.prepare_for_chat(model, words)
    assert words.chat_template == sft.CHATML and model.config.eos_token_id == END
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written["eos_token_id"] == END
    own = "{# our own #}" + sft.CHATML
    words.chat_template = own
    sft.prepare_for_chat(model, words)
    assert words.chat_template == own


def test_tokenizer_without_template():
    with pytest.raises(ValueError, match="has no chat template"):
        sft.ChatTemplate(train_bpe(TEXTS, vocab_size=280))


# ---------------------------------------------------------------- the data set


def test_dataset_labels_are_shifted_and_masked(tokenizer):
    dataset = sft.SFTDataset([{"conversations": TWO_TURNS}, EXCHANGE], tokenizer, 128)
    for (ids, labels), length in zip(dataset, dataset.lengths, strict=True):
        assert ids.dtype == labels.dtype == np.int64
        assert len(ids) == len(labels) == length and ids[0] == 0
        assert labels[-1] == END  # it ends with the end of the last answer
        seen = labels >= 0
        assert (labels[:-1][seen[:-1]] == ids[1:][seen[:-1]]).all()
    assert tokenizer.decode([n for n in dataset[1][1] if n >= 0]) == (
        "2 + 3 = 5.<|im_end|>"
    )


def test_dataset_drops_what_does_not_fit_and_cuts_nothing(tokenizer):
    long = [EXCHANGE[0], {"role": "assistant", "content": "Tim had a kite. " * 40}]
    dataset = sft.SFTDataset([EXCHANGE, long, EXCHANGE], tokenizer, 64)
    assert (len(dataset), dataset.dropped) == (2, 1)
    assert "1 dropped for more than 64 tokens" in repr(dataset)
    length = int(sft.SFTDataset([EXCHANGE], tokenizer, 64).lengths[0])
    assert len(sft.SFTDataset([EXCHANGE], tokenizer, length)) == 1  # just fits
    with pytest.raises(ValueError, match="none of the conversations fits"):
        sft.SFTDataset([EXCHANGE], tokenizer, length - 1)
    with pytest.raises(ValueError, match="conversation 2 has no answer"):
        sft.SFTDataset([EXCHANGE, EXCHANGE[:1]], tokenizer, 64)


def test_masked_tokens_give_no_gradient(tokenizer):
    model = small_model(tokenizer)
    ids, labels = map(torch.tensor, sft.SFTDataset([TWO_TURNS], tokenizer, 128)[0])
    logits = model(ids[None])
    logits.retain_grad()
    cross_entropy(logits, labels[None]).backward()
    size = logits.grad[0].abs().sum(-1)
    assert (size[labels < 0] == 0).all() and (size[labels >= 0] > 0).all()


def test_packed_is_separate(tokenizer):
    """Conversations in one row: the loss of each as if it stood alone."""
    from minillm.attention import document_mask
    from minillm.pretraining import Batches

    other = [EXCHANGE[0], {"role": "assistant", "content": "I do not know."}]
    dataset = sft.SFTDataset([TWO_TURNS, EXCHANGE, other], tokenizer, 160)
    model = small_model(tokenizer).double()
    batch = next(iter(Batches(dataset, rows=1, context=int(dataset.lengths.sum()))))
    batch = {name: torch.as_tensor(value) for name, value in batch.items()}
    assert len(set(batch["document_ids"][0].tolist())) >= 3
    logits = model(
        batch["input_ids"],
        mask=document_mask(batch["document_ids"]),
        position_ids=batch["position_ids"],
    )
    packed = cross_entropy(logits, batch["labels"], reduction="sum")
    alone = sum(
        cross_entropy(
            model(torch.tensor(ids)[None]), torch.tensor(labels)[None], reduction="sum"
        )
        for ids, labels in dataset
    )
    torch.testing.assert_close(packed, alone, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------- answers and grades


def test_answers_of_a_batch_are_those_alone(tokenizer):
    model = small_model(tokenizer).double().eval()
    rows = [{"conversations": m} for m in (TWO_TURNS, EXCHANGE, TWO_TURNS[1:3])]
    config = replace(sft.GREEDY, max_new_tokens=12)
    together = sft.answer(model, tokenizer, rows, config)
    alone = [sft.answer(model, tokenizer, [row], config)[0] for row in rows]
    assert together == alone


def test_grades_by_kind():
    rows = [{"kind": "sum", "a": "5"}, {"kind": "sum", "a": "6"}, {"kind": "day"}, {}]
    replies = ["5", "5", "", ""]
    found = sft.grade(rows, replies, lambda row, reply: row.get("a") == reply)
    wanted = {"day": (0, 1), "other": (0, 1), "sum": (1, 2), "all": (1, 4)}
    assert list(found.items()) == list(wanted.items())
    with pytest.raises(ValueError, match="shorter"):
        sft.grade(rows, replies[:1], lambda row, reply: True)


def test_wilson_interval_against_its_equation():
    for right, asked in [(0, 20), (7, 20), (20, 20), (181, 200)]:
        for bound in sft.wilson(right, asked):
            spread = 1.96 * (bound * (1 - bound) / asked) ** 0.5
            assert abs(bound - right / asked) == pytest.approx(spread, abs=1e-7)
            assert -1e-9 <= bound <= 1 + 1e-9


def test_mixture_holds_all_examples_of_all(tokenizer):
    first = sft.SFTDataset([EXCHANGE, TWO_TURNS], tokenizer, 160)
    second = sft.SFTDataset([TWO_TURNS], tokenizer, 160)
    mixture = sft.Mixture(first, second, first)
    assert len(mixture) == 5 and mixture.lengths.tolist() == [
        len(ids) for ids, _ in (*first, *second, *first)
    ]
    for (ids, labels), pair in zip(
        (mixture[n] for n in range(5)), (*first, *second, *first), strict=True
    ):
        assert (ids == pair[0]).all() and (labels == pair[1]).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(nasty, min_size=2, max_size=4), nasty)
def test_nothing_typed_changes_what_is_learned(template, tokenizer, texts, typed):
    """Whatever the users of a data set typed, only the answers' tokens are learned."""
    messages = turns(texts[: len(texts) // 2 * 2], None)
    attacked = [{**m, "content": typed} if m["role"] == "user" else m for m in messages]

    def kept(rows):
        ids, learned = template.encode(rows)
        return [number for number, mark in zip(ids, learned, strict=True) if mark]

    assert kept(attacked) == kept(messages)


def test_a_stopped_run_goes_on_to_the_same_weights(tokenizer, tmp_path):
    """Chapter 12's relay holds for conversations: bit by bit."""

    class Stop:
        def on_save(self, trainer, folder):
            raise KeyboardInterrupt

    def run(name, *callbacks):
        other = [EXCHANGE[0], {"role": "assistant", "content": "I do not know."}]
        talks = sft.SFTDataset([TWO_TURNS, EXCHANGE, other], tokenizer, 160)
        config = RunConfig(
            output_dir=str(tmp_path / name),
            max_steps=6,
            save_steps=3,
            eval_steps=0,
            per_device_train_batch_size=2,
            context_length=160,
            precision="float32",
        )
        data = sft.Mixture(talks, talks)
        Run(small_model(tokenizer), tokenizer, config, data, None, callbacks).train()
        return tmp_path / name / "final/model.safetensors"

    whole = run("whole")
    with contextlib.suppress(KeyboardInterrupt):
        run("parts", Stop())
    assert not (tmp_path / "parts/final").exists()
    assert run("parts").read_bytes() == whole.read_bytes()
