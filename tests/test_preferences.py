"""Pairs of answers: the judge takes the chosen one and refuses the rejected one."""

import collections
import json
import re

import pytest
from littleworld import World, judge, preference, write_corpus
from littleworld.preferences import REASONS


@pytest.fixture(scope="module")
def worlds():
    return {dial: World(dial) for dial in ("small", "nano", "medium", "full", "big")}


def last(messages):
    return messages[-1]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("reason", REASONS)
@pytest.mark.parametrize("dial", ["small", "nano", "medium", "full", "big"])
def test_the_judge_agrees_with_every_pair(worlds, dial, reason):
    for seed in range(24):
        pair = preference(worlds[dial], seed, ("train", "test")[seed % 2], reason)
        row = json.loads(json.dumps(pair))
        assert judge(row, last(row["chosen"])), row
        assert not judge(row, last(row["rejected"])), row
        assert row["reason"] == reason
        assert row["chosen"][:-1] == row["rejected"][:-1]
        roles = [message["role"] for message in row["chosen"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert last(row["rejected"]).strip()


def test_each_reason_is_what_it_says(worlds):
    world = worlds["small"]
    for seed in range(40):
        pairs = {reason: preference(world, seed, reason=reason) for reason in REASONS}
        for reason in ("off-constraint", "inconsistent"):
            row = pairs[reason]
            if row["kind"] == "story":
                verdict = world.check(last(row["rejected"]))
                assert verdict.right == (reason == "off-constraint")
                if reason == "inconsistent" and verdict.grammatical:
                    assert verdict.faults
        for reason in ("too long",):
            good, bad = (last(pairs[reason][key]) for key in ("chosen", "rejected"))
            assert bad.startswith(good) and len(bad) > len(good) + 15
        row = pairs["wrong fact"]
        if row["kind"] in ("fact", "opposite", "day", "sum"):
            good, bad = last(row["chosen"]).split(), last(row["rejected"]).split()
            assert good[:2] == bad[:2] and good != bad


def test_inconsistent_stories_are_grammatical_as_a_rule(worlds):
    rows = [preference(worlds["small"], s, reason="inconsistent") for s in range(200)]
    texts = [last(row["rejected"]) for row in rows if row["kind"] == "story"]
    verdicts = [worlds["small"].check(text) for text in texts]
    assert sum(v.grammatical and len(v.faults) > 0 for v in verdicts) == len(texts) > 50


def test_pairs_of_the_test_ask_what_training_does_not(worlds):
    def asked(split):
        rows = [preference(worlds["small"], seed, split) for seed in range(300)]
        kinds = ("fact", "opposite", "day", "sum", "counting", "story")
        return {last(r["chosen"][:-1]) for r in rows if r["kind"] in kinds}

    assert not asked("train") & asked("test")
    with pytest.raises(ValueError, match="no reason 'dull'; there are wrong fact, inc"):
        preference(worlds["small"], 0, reason="dull")


def test_the_corpus_has_them_and_the_other_files_do_not_change(tmp_path):
    sizes = dict(documents=30, conversations=30, validation=5, per_kind=1)
    few = write_corpus(tmp_path / "few", **sizes, preferences=5)
    more = write_corpus(tmp_path / "more", **sizes, preferences=40)
    for name in few["files"]:
        same = few["files"][name] == more["files"][name]
        assert same == (not name.startswith("preferences"))
    rows = [
        json.loads(line) for line in open(tmp_path / "more/preferences_train.jsonl")
    ]
    assert collections.Counter(r["reason"] for r in rows) == dict.fromkeys(REASONS, 8)
    assert all({"chosen", "rejected"} <= row.keys() for row in rows)
    about = write_corpus(tmp_path / "default", **sizes)
    assert about["files"]["preferences_train.jsonl"]["rows"] == 5


def test_chinese_pairs_stay_chinese(worlds):
    for seed in range(150):
        pair = preference(worlds["full"], seed)
        text = last(pair["rejected"])
        if pair["kind"] != "translation" and not last(pair["chosen"]).isascii():
            assert not re.search("[A-Za-z]", text), pair
