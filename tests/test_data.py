"""Chapter 01: measuring a corpus, in counts and in bits."""

import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_formats import peak_of

from minillm import data
from minillm.data import (
    NearDuplicates,
    bits_per_byte,
    compress,
    deduplicate,
    diversity,
    entropy,
    held_out,
    sample_texts,
    summarize,
)


def test_bits_per_byte():
    assert bits_per_byte(math.log(2) * 16, 8) == pytest.approx(2)
    with pytest.raises(ValueError, match="num_bytes=0"):
        bits_per_byte(1.0, 0)


def test_entropy_of_coins_and_dice():
    assert entropy([1, 1]) == 1
    assert entropy([5, 0]) == 0
    assert entropy([1] * 8) == pytest.approx(3)
    assert entropy([3, 1]) == pytest.approx(0.8112781)


@given(st.lists(st.integers(1, 1000), min_size=1))
def test_entropy_lies_between_zero_and_uniform(counts):
    assert -1e-9 <= entropy(counts) <= math.log2(len(counts)) + 1e-9


def test_compressors_agree_on_what_is_simple():
    rates = compress(["ab" * 5000])
    assert rates["order-0"] == pytest.approx(1, abs=1e-6)
    assert rates["bigram"] == pytest.approx(0, abs=1e-3)
    assert all(rates[name] < 0.1 for name in ("zlib", "bz2", "xz"))
    with pytest.raises(ValueError, match="no text"):
        compress([])


def test_the_split_keeps_repeats_on_one_side():
    texts = [f"story {number % 1000}" for number in range(3000)]
    held = {text for text in texts if held_out(text, share=0.1)}
    assert not held & {text for text in texts if not held_out(text, share=0.1)}
    assert 70 < len(held) < 130
    assert held_out("story 1", share=0.5) == held_out("story 1", share=0.5)


def test_a_sample_is_everything_or_a_share_with_all_copies(monkeypatch):
    texts = [f"story number {number % 5000}" for number in range(10_000)]
    assert sample_texts(texts) == (texts, 10_000, sum(map(len, texts)))
    monkeypatch.setattr(data, "SAMPLE", 20_000)
    kept, count, size = sample_texts(texts)
    assert (count, size) == (10_000, sum(map(len, texts)))
    assert 400 < len(kept) and sum(map(len, kept)) <= 20_000
    assert summarize(kept)["duplicates"] * 2 == len(kept)  # every text is there twice
    kept, count, _ = sample_texts(["the same again"] * 10_000)
    assert count == 10_000 and summarize(kept)["duplicates"] == len(kept) - 1 > 500
    assert sample_texts(["x" * 30_000] * 3)[0] == ["x" * 30_000]


def test_a_sample_of_a_large_corpus_leaves_the_memory_flat(monkeypatch):
    monkeypatch.setattr(data, "SAMPLE", 1_000_000)
    texts = (f"{number} {'x' * 10_000}" for number in range(10_000))  # 100 MB
    (kept, count, size), peak = peak_of(lambda: sample_texts(texts))
    assert count == 10_000 and size > 100e6 and 40 < len(kept) < 101 and peak < 3e6


def test_deduplicate_keeps_the_first():
    assert list(deduplicate(["b", "a", "b", "c", "a"])) == ["b", "a", "c"]


def test_summary():
    counts = summarize(["a b", "a b", "小鸟 c"])
    assert counts["documents"] == 3 and counts["duplicates"] == 1
    assert counts["distinct_words"] == 4 and counts["longest"] == 8
    assert counts["han_share"] == pytest.approx(0.2)
    with pytest.raises(ValueError, match="no documents"):
        summarize([])


def test_near_duplicates_are_found():
    story = " ".join(f"word{index}" for index in range(60))
    near, far = story.replace("word30 ", "other "), story[::-1]
    assert list(deduplicate([story, near, far, story])) == [story, near, far]
    assert list(deduplicate([story, near, far, story], likeness=0.7)) == [story, far]
    seen = NearDuplicates(0.7)
    assert seen.find(story) is None and seen.find(far) is None
    number, likeness = seen.find(near)
    assert number == 0 and 0.7 <= likeness < 1
    assert seen.find("小鸟飞了又飞，飞到了大树上。") is None
    assert seen.find("小鸟飞了又飞，飞到了大树上！") == (3, 1.0)
    assert NearDuplicates().find("") is None


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert list(deduplicate(["a", "a"])) == ["a"]
    with pytest.raises(ValueError, match="pip install datasketch"):
        list(deduplicate(["a", "a"], likeness=0.8))


def test_diversity_of_batches():
    same = diversity(["the same old story"] * 8)
    other = diversity([f"{a} saw {b} at {c}" for a, b, c in ("abc", "def", "ghi")])
    assert same["texts"] == 1 / 8 and same["runs of 1"] == 4 / 32
    assert other["texts"] == 1 and other["runs of 3"] == 1
    assert same["packed"] < 0.3
    assert diversity(["one"])["runs of 3"] == 0
    with pytest.raises(ValueError, match="no texts to compare"):
        diversity([])
