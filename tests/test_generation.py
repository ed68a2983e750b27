import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM
from transformers.generation import logits_process as theirs

from minillm.generation import (
    ContextFull,
    GenerationConfig,
    LeftPadding,
    filter_logits,
    generate,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_repetition,
    sample,
    scale_temperature,
    stop_before,
    stream,
    stream_ids,
)
from minillm.tokenizer import train_bpe
from minillm.transformer import ModelConfig, Transformer

GREEDY = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=())
TEXTS = ["Ana found a red kite. She gave the red kite to Ben. ¿Qué? 你好 🙂"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 264)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    return Transformer(config).eval()


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


@pytest.fixture
def logits():
    return 3 * torch.randn(4, 19, generator=torch.Generator().manual_seed(1))


def prompts(*lengths, vocab=264):
    random = torch.Generator().manual_seed(5)
    return [torch.randint(3, vocab, (1, n), generator=random) for n in lengths]


def pad_left(rows):
    width = max(row.shape[1] for row in rows)
    padded = [
        torch.nn.functional.pad(r, (width - r.shape[1], 0), value=0) for r in rows
    ]
    masks = [torch.arange(width) >= width - r.shape[1] for r in rows]
    return torch.cat(padded), torch.stack(masks).long()


# ---- filters: the same numbers as transformers' logits processors


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.5])
def test_temperature_equals_transformers(logits, temperature):
    wanted = theirs.TemperatureLogitsWarper(temperature)(None, logits)
    assert torch.equal(scale_temperature(logits, temperature), wanted)


@pytest.mark.parametrize("top_k", [1, 2, 7, 19, 500])
def test_top_k_equals_transformers(logits, top_k):
    assert torch.equal(
        keep_top_k(logits, top_k), theirs.TopKLogitsWarper(top_k)(None, logits)
    )


def test_top_k_keeps_ties():
    kept = keep_top_k(torch.tensor([[2.0, 1.0, 1.0, 0.0]]), 2)
    assert kept.isfinite().tolist() == [[True, True, True, False]]


@pytest.mark.parametrize("top_p", [0.001, 0.3, 0.5, 0.9, 0.999])
def test_top_p_equals_transformers(logits, top_p):
    assert torch.equal(
        keep_top_p(logits, top_p), theirs.TopPLogitsWarper(top_p)(None, logits)
    )


@pytest.mark.parametrize("min_p", [0.01, 0.2, 0.9, 1.0])
def test_min_p_equals_transformers(logits, min_p):
    assert torch.equal(
        keep_min_p(logits, min_p), theirs.MinPLogitsWarper(min_p)(None, logits)
    )


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 5.0])
def test_penalty_equals_transformers(logits, penalty):
    previous = torch.tensor([[0, 3, 3], [1, 2, 18], [5, 5, 5], [18, 0, 9]])
    wanted = theirs.RepetitionPenaltyLogitsProcessor(penalty)(previous, logits)
    assert torch.equal(penalize_repetition(logits, previous, penalty), wanted)


def test_penalty_skips_negative_ids(logits):
    padded = torch.tensor([[-1, -1, 3]] * 4)
    alone = torch.tensor([[3]] * 4)
    wanted = penalize_repetition(logits, alone, 2.0)
    assert torch.equal(penalize_repetition(logits, padded, 2.0), wanted)


@settings(max_examples=60, deadline=None)
@given(
    temperature=st.floats(0.05, 3.0),
    top_k=st.integers(0, 25),
    top_p=st.floats(0.01, 1.0),
    min_p=st.floats(0.0, 1.0),
    penalty=st.floats(0.2, 3.0),
    do_sample=st.booleans(),
    seed=st.integers(0, 9),
)
def test_all_filters_in_transformers_order(
    reference, temperature, top_k, top_p, min_p, penalty, do_sample, seed
):
    random = torch.Generator().manual_seed(seed)
    scores = 4 * torch.randn(2, 264, generator=random)
    previous = torch.randint(0, 264, (2, 6), generator=random)
    options = dict(
        do_sample=do_sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
    )
    config = reference.generation_config.__class__(**options)
    processors = reference._get_logits_processor(config, 6)
    wanted = processors(previous, scores.clone())
    got = filter_logits(scores, GenerationConfig(**options), previous)
    assert torch.equal(got.isfinite(), wanted.isfinite())
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_filters_keep_at_least_one_token_and_leave_their_input_alone(logits):
    before = logits.clone()
    config = GenerationConfig(top_k=1, top_p=1e-9, min_p=1.0)
    assert (filter_logits(logits, config).isfinite().sum(-1) == 1).all()
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(temperature=0.0),
        dict(top_p=0.0),
        dict(top_p=1.1),
        dict(top_k=-1),
        dict(min_p=-0.1),
        dict(max_new_tokens=0),
        dict(repetition_penalty=0.0),
        dict(stop_strings=("",)),
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GenerationConfig(**wrong)


def test_zero_temperature_says_what_to_do():
    with pytest.raises(ValueError, match="do_sample=False"):
        GenerationConfig(temperature=0.0)


# ---- sampling


def test_sampled_frequencies_follow_the_filtered_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20000, 1)
    config = GenerationConfig(top_k=3, temperature=1.5)
    random = torch.Generator().manual_seed(0)
    counts = sample(logits, config, generator=random).bincount(minlength=4) / 20000
    wanted = filter_logits(logits[:1], config).softmax(-1)[0]
    assert counts[3] == 0
    assert (counts - wanted).abs().max() < 0.015


def test_greedy_takes_the_likeliest(logits):
    greedy = GenerationConfig(do_sample=False, temperature=9.0, top_k=1)
    assert torch.equal(sample(logits, greedy), logits.argmax(-1))


# ---- generate


@pytest.mark.parametrize("length", [1, 5, 17])
@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_text_equals_transformers(model, reference, length, penalty):
    (ids,) = prompts(length)
    config = GenerationConfig(
        max_new_tokens=20, do_sample=False, repetition_penalty=penalty, eos_token_id=0
    )
    wanted = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=0,
        pad_token_id=0,
    )
    assert generate(model, ids, config).tolist() == wanted.tolist()


def test_sampled_text_equals_transformers_with_the_same_seed(model, reference):
    (ids,) = prompts(4)
    options = dict(do_sample=True, temperature=0.8, top_k=30, top_p=0.95, min_p=0.01)
    torch.manual_seed(3)
    wanted = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=20,
        eos_token_id=None,
        pad_token_id=0,
        **options,
    )
    torch.manual_seed(3)
    config = GenerationConfig(max_new_tokens=20, eos_token_id=(), **options)
    assert generate(model, ids, config).tolist() == wanted.tolist()


def test_batch_of_left_padded_prompts_equals_transformers(model, reference):
    ids, mask = pad_left(prompts(3, 9, 6))
    wanted = reference.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert generate(model, ids, GREEDY, mask).tolist() == wanted.tolist()


@pytest.mark.parametrize("penalty", [1.0, 1.5])
def test_batch_of_left_padded_prompts_equals_single_runs(model, penalty):
    rows = prompts(2, 11, 5, 7)
    ids, mask = pad_left(rows)
    config = GenerationConfig(**{**vars(GREEDY), "repetition_penalty": penalty})
    together = generate(model, ids, config, mask)[:, ids.shape[1] :]
    for row, got in zip(rows, together, strict=True):
        alone = generate(model, row, config)[0, row.shape[1] :]
        assert got.tolist() == alone.tolist()


def test_rows_end_at_their_own_end_token_and_are_padded(model):
    rows = prompts(5, 5, 5)
    ids = torch.cat(rows)
    free = generate(model, ids, GREEDY)
    end = free[1, 8].item()
    options = {**vars(GREEDY), "eos_token_id": (end, 999), "pad_token_id": 1}
    ended = generate(model, ids, GenerationConfig(**options))
    for row, whole in zip(ended.tolist(), free.tolist(), strict=True):
        place = whole.index(end, 5) + 1 if end in whole[5:] else len(row)
        assert row[:place] == whole[:place]
        assert set(row[place:]) <= {1}


def test_a_model_without_a_padding_token_pads_with_its_end_token(model, monkeypatch):
    ids = torch.cat(prompts(5, 5))
    end = generate(model, ids, GREEDY)[0, 7].item()
    monkeypatch.setattr(model.config, "pad_token_id", None)
    config = GenerationConfig(**{**vars(GREEDY), "eos_token_id": (end,)})
    row = generate(model, ids, config)[0, 5:].tolist()
    assert set(row[row.index(end) :]) == {end}
    assert generate(model, ids, GREEDY).shape == (2, 17)  # no end token either


def test_generation_stops_early_once_all_rows_ended(model):
    (ids,) = prompts(5)
    end = generate(model, ids, GREEDY)[0, 7].item()
    config = GenerationConfig(**{**vars(GREEDY), "eos_token_id": end})
    assert generate(model, ids, config).shape[1] <= 8


def test_the_models_own_end_token_is_the_default(model):
    (ids,) = prompts(5)
    end = generate(model, ids, GREEDY)[0, 6].item()
    before = model.config.eos_token_id
    try:
        for own in (end, [999, end]):  # config.json may hold a list
            model.config.eos_token_id = own
            config = GenerationConfig(max_new_tokens=12, do_sample=False)
            assert generate(model, ids, config)[0, -1] == end
    finally:
        model.config.eos_token_id = before


def test_configs_of_ones_own(model, monkeypatch):
    """Subclasses with more fields, and end tokens that a model config works out."""

    @dataclass
    class Ending(ModelConfig):
        marks: tuple = ()

        def __getattribute__(self, name):
            special = name == "eos_token_id" and object.__getattribute__(self, "marks")
            return special or super().__getattribute__(name)

    @dataclass
    class Named(GenerationConfig):
        name: str = "mine"

    (ids,) = prompts(5)
    free = generate(model, ids, GREEDY)
    end = free[0, 8].item()
    config = Ending(**vars(model.config), marks=(999, end))
    monkeypatch.setattr(model, "config", config)
    mine = Named(max_new_tokens=12, do_sample=False)
    place = free[0].tolist().index(end, 5)
    assert torch.equal(generate(model, ids, mine), free[:, : place + 1])
    assert list(stream_ids(model, ids, mine)) == free[0, 5:place].tolist()
    none = replace(mine, eos_token_id=())
    assert torch.equal(generate(model, ids, none), free)


def test_a_seed_repeats_and_leaves_the_global_state_alone(model):
    (ids,) = prompts(3)
    config = GenerationConfig(max_new_tokens=15, seed=7, eos_token_id=())
    state = torch.get_rng_state()
    first, second = generate(model, ids, config), generate(model, ids, config)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    config.seed = 8
    assert not torch.equal(first, generate(model, ids, config))


def test_a_cache_from_before_gives_the_same_text(model):
    (ids,) = prompts(9)
    wanted = generate(model, ids, GREEDY)
    cache = model.new_cache()
    with torch.no_grad():
        model(ids[:, :6], cache=cache)
    assert torch.equal(generate(model, ids, GREEDY, cache=cache), wanted)
    assert cache[0].length == wanted.shape[1] - 1
    again = generate(model, wanted[:, :-1], GREEDY, cache=cache)  # the next turn
    assert torch.equal(again, generate(model, wanted[:, :-1], GREEDY))


def test_a_cache_that_holds_the_whole_prompt_or_more(model):
    (ids,) = prompts(9)
    cache = model.new_cache()
    with torch.no_grad():
        model(ids, cache=cache)
    wanted = generate(model, ids[:, :7], GREEDY)
    assert torch.equal(generate(model, ids[:, :7], GREEDY, cache=cache), wanted)


def test_a_cache_made_while_generating_works_outside(model):
    (ids,) = prompts(4)
    cache = model.new_cache()
    whole = generate(model, ids, GREEDY, cache=cache)
    logits = model(whole[:, -1:], cache=cache)  # not in inference mode: may be written
    assert torch.allclose(logits[:, -1], model(whole)[:, -1], atol=1e-4)


# ---- the context runs out, and other bad input


def test_full_context_stops_with_a_warning(model):
    (ids,) = prompts(60)
    config = GenerationConfig(max_new_tokens=30, do_sample=False, eos_token_id=())
    with pytest.warns(ContextFull, match="4 new tokens.* 64 is full"):
        made = generate(model, ids, config)
    assert made.shape[1] == 64
    with pytest.warns(ContextFull):
        assert list(stream_ids(model, ids, config)) == made[0, 60:].tolist()


def test_no_warning_where_the_text_fits_or_ends(model):
    (ids,) = prompts(60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, ids, GenerationConfig(max_new_tokens=4, eos_token_id=()))
        first = generate(model, ids, GenerationConfig(4, do_sample=False))[0, 60].item()
        ending = GenerationConfig(99, do_sample=False, eos_token_id=first)
        assert generate(model, ids, ending).shape[1] == 61
        assert list(stream_ids(model, ids, ending)) == []


@pytest.mark.parametrize("length", [64, 100])
def test_a_prompt_that_fills_the_context_is_refused(model, length):
    with pytest.raises(ValueError, match=rf"{length} tokens.*64"):
        generate(model, *prompts(length), GREEDY)


def test_bad_input_is_refused(model):
    ids = torch.cat(prompts(4, 4))
    with pytest.raises(ValueError, match="empty"):
        generate(model, ids[:, :0], GREEDY)
    with pytest.raises(ValueError, match="left"):
        generate(model, ids, GREEDY, torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="left"):
        LeftPadding(ids, torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1]]))
    with pytest.raises(ValueError, match="token 264 .* vocab_size=264"):
        generate(model, ids.clamp(min=264), GREEDY)
    with pytest.raises(ValueError, match="shape"):
        generate(model, ids, GREEDY, torch.ones(2, 3))
    with pytest.raises(ValueError, match="one row"):
        next(stream_ids(model, ids, GREEDY))
    with pytest.raises(ValueError, match="stream"):
        generate(model, ids, GenerationConfig(stop_strings=(".",)))


# ---- streams


def test_stream_ids_equals_generate_without_the_end_token(model):
    (ids,) = prompts(5)
    free = generate(model, ids, GREEDY)[0, 5:].tolist()
    assert list(stream_ids(model, ids, GREEDY)) == free
    config = GenerationConfig(**{**vars(GREEDY), "eos_token_id": free[6]})
    assert list(stream_ids(model, ids, config)) == free[: free.index(free[6])]


def test_a_stream_does_not_switch_gradients_off_for_its_reader(model):
    for _ in stream_ids(model, *prompts(3), GREEDY):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("seed", range(4))
def test_stream_equals_decoding_everything_at_once(model, tokenizer, seed):
    config = GenerationConfig(max_new_tokens=50, seed=seed, eos_token_id=())
    prompt = [0, *tokenizer.encode("Ana found")]
    ids = generate(model, torch.tensor([prompt]), config)[0, len(prompt) :].tolist()
    pieces = list(stream(model, tokenizer, "Ana found", config))
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces == list(stream(model, tokenizer, prompt, config))


def test_stream_stops_before_a_stop_string(model, tokenizer):
    config = GenerationConfig(max_new_tokens=50, seed=1, eos_token_id=())
    whole = "".join(stream(model, tokenizer, "Ana", config))
    stop = whole[10:13]
    config.stop_strings = (stop,)
    assert (
        "".join(stream(model, tokenizer, "Ana", config)) == whole[: whole.index(stop)]
    )


PIECES = st.lists(st.text("ab\n", max_size=3), max_size=12)
STOP = st.text("ab\n", min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES, stop=STOP)
def test_stop_before_equals_cutting_the_whole_text(pieces, stop):
    got = list(stop_before(pieces, (stop,)))
    assert "".join(got) == "".join(pieces).split(stop)[0]
    assert all(got)


@settings(max_examples=200, deadline=None)
@given(pieces=PIECES, stops=st.lists(STOP, max_size=3))
def test_stop_before_never_shows_a_stop_string(pieces, stops):
    whole, got = "".join(pieces), "".join(stop_before(pieces, tuple(stops)))
    assert whole.startswith(got)
    assert not any(stop in got for stop in stops)
    assert (got == whole) == (not any(stop in whole for stop in stops))


def test_stop_before_holds_back_only_what_could_be_a_beginning():
    pieces = iter(["Hi", "!\n", "x", "\n", "\nBye", "never read"])
    assert list(stop_before(pieces, ("\n\n",))) == ["Hi", "!", "\nx"]
    assert list(pieces) == ["never read"]
    assert list(stop_before(["a", "", "b\n"], ())) == ["a", "b\n"]
    assert list(stop_before(["b\n"], ("\n\n",))) == ["b", "\n"]
