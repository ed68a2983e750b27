"""Little World: sampling, exact scores, the checker, conversations and the corpus."""

import collections
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from littleworld import World, check, excess, explain, judge, score, write_corpus
from littleworld.conversations import LATER, pools
from littleworld.engine import number, parse_template, read
from littleworld.lexicon import check_halves, check_words, load, load_dial, make_item
from littleworld.mutations import (
    missing_letter,
    missing_sentence,
    swapped_sentences,
    wrong_number,
    wrong_word,
)
from littleworld.plots import document
from littleworld.world import default_world

ROOT = Path(__file__).parents[1]
DIALS = sorted(load("dials.toml"))
KINDS = World().dial["conversations"]


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def samples(world):
    return [world.sample(f"test/{seed}") for seed in range(400)]


def tokens_of(text):
    """The ends of words and signs, as a tokenizer would cut them."""
    return [match.end() for match in re.finditer(r"\s?\w+|\W", text)]


# ------------------------------------------------------------ sample and score


@pytest.mark.slow
@pytest.mark.parametrize("dial", DIALS)
def test_score_gives_the_sampler_bits_for_every_kind(dial):
    world, kinds = World(dial), collections.Counter()
    for seed in range(80):
        sample = world.sample(seed)
        kinds[sample.kind] += 1
        bits = [reader.bits for reader in read(document, world, sample.text)]
        assert any(math.isclose(b, sample.bits, abs_tol=1e-9) for b in bits), sample
        total = -math.log2(math.fsum(2**-b for b in bits))
        assert math.isclose(world.score(sample.text), total, abs_tol=1e-9)
    shares = World(dial).dial["documents"]
    assert set(kinds) >= {kind for kind, share in shares.items() if share > 0.06}


@pytest.mark.parametrize("dial", DIALS)
def test_every_sample_is_right(dial):
    world = World(dial)
    for seed in range(60):
        sample = world.sample(f"right/{seed}")
        verdict = world.check(sample.text)
        assert verdict.right and verdict.grammatical and not verdict.faults, sample
        assert verdict.reached == len(sample.text)
        assert verdict.kind == sample.kind


def test_the_same_seed_gives_the_same_document(world):
    assert world.sample(7) == World().sample(7)
    assert world.sample("a/7").text != world.sample("b/7").text


def test_the_trace_adds_up_and_points_into_the_text(samples):
    for sample in samples[:100]:
        bits = math.fsum(step.bits for step in sample.trace)
        assert math.isclose(bits, sample.bits, abs_tol=1e-9)
        for step in sample.trace:
            word = sample.text[step.position : step.position + step.length]
            assert word == word.strip() and (step.first or step.bits == 0)


def test_probabilities_of_a_small_world_sum_to_one():
    world = World({**load_dial("nano"), "documents": {"counting": 1}, "count_to": 3})
    texts = {world.sample(seed).text for seed in range(6000)}
    assert len(texts) == 6**3
    assert math.isclose(sum(2 ** -world.score(text) for text in texts), 1, abs_tol=1e-9)


def test_what_may_follow_a_prefix_sums_to_its_probability(world, samples):
    """The same on the whole world: P(prefix) is the sum over the next character."""
    letters = sorted({letter for sample in samples for letter in sample.text})
    rng = random.Random(0)
    for sample in samples[:8]:
        prefix = sample.text[: rng.randrange(len(sample.text) + 1)]
        ways = [2 ** -world.prefix_bits(prefix + letter) for letter in letters]
        total = math.fsum(ways) + 2 ** -world.score(prefix)
        assert math.isclose(total, 2 ** -world.prefix_bits(prefix), rel_tol=1e-9)
    assert world.prefix_bits("") == 0


def test_all_derivations_are_added_up(world, samples):
    """A sentence that stands twice in the lexicon is no other world."""
    twice = World()
    twice.groups["story.opening"] = twice.groups["story.opening"] * 2
    for sample in samples[:60]:
        if sample.kind == "story":
            assert len(read(document, twice, sample.text)) == 2
        assert math.isclose(twice.score(sample.text), world.score(sample.text))


def test_a_text_of_another_world_has_no_bits(world, samples):
    assert score("The quick brown fox.") == math.inf
    text = samples[0].text
    assert score(text) < math.inf and world.leaves(text) == len(text)
    broken = text[:40] + "#" + text[40:]
    assert score(broken) == math.inf and world.leaves(broken) == 40


def test_a_number_is_written_in_one_way(world):
    text = (
        "Count from 3 to 5: 3 4 5. Count from 0 to 2: 0 1 2. Count from 3 to 5: 3 4 5."
    )
    assert score(text) < math.inf
    for other in ("03", "\u0663", "３", "+3"):
        assert score(text.replace("3", other)) == score(text.replace("3", other, 1))
        assert score(text.replace("3", other)) == math.inf


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80))
def test_any_text_gets_a_verdict(text):
    verdict = check(text)
    assert verdict.right == (score(text) < math.inf)
    assert verdict.right <= verdict.grammatical
    assert 0 <= verdict.reached <= len(text)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.data())
def test_cutting_a_document_is_noticed(seed, data):
    world = default_world()
    text = world.sample(seed).text
    end = data.draw(st.integers(0, len(text) - 1))
    cut = check(text[:end])
    assert world.prefix_bits(text[:end]) < math.inf
    assert cut.right or (not cut.grammatical and cut.reached == end)


# ---------------------------------------------------------------------- check


@pytest.mark.parametrize(
    "mutate, least",
    [
        (wrong_word, 1.0),
        (wrong_number, 1.0),
        (missing_letter, 1.0),
        (missing_sentence, 0.8),
        (swapped_sentences, 0.95),
    ],
)
def test_a_mutated_document_is_caught(world, samples, mutate, least):
    rng, right, total = random.Random(0), 0, 0
    for sample in samples[:60]:
        text = mutate(world, sample, rng)
        if text is not None and text != sample.text:
            total += 1
            right += world.check(text).right
    assert total > 9
    assert 1 - right / total >= least, f"{right} of {total} pass"


def test_a_wrong_word_is_named_with_its_place(world, samples):
    rng, named, total = random.Random(1), 0, 0
    for sample in samples[:150]:
        text = wrong_word(world, sample, rng)
        if text is None:
            continue
        total += 1
        verdict = world.check(text)
        assert verdict.grammatical and not verdict.right
        fault = verdict.faults[0]
        assert text.startswith(fault.got, fault.position)
        named += sample.text.startswith(fault.wanted, fault.position)
    assert named / total > 0.9


def test_inconsistent_and_ungrammatical_are_told_apart(world):
    story = (
        "Tim was a shy cat. Next door to Tim the {kind} lived a fox called Mia. "
        "One day it was rainy, and Tim went to the park. "
        '"Tim, do not forget the {gear}," said Mia the fox. '
        "Tim took the umbrella. At the park Tim was happy to have the umbrella."
    )
    assert world.check(story.format(kind="cat", gear="umbrella")).right
    verdict = world.check(story.format(kind="dog", gear="boots"))
    assert verdict.grammatical and not verdict.right and verdict.slots == 12
    assert [(f.slot, f.wanted, f.got) for f in verdict.faults] == [
        ("kind", "cat", "dog"),
        ("weather.gear", "umbrella", "boots"),
    ]
    verdict = world.check(story.format(kind="purple", gear="umbrella"))
    assert not verdict.grammatical
    assert verdict.reached == story.index("{kind}")


def test_a_greedy_hero_who_shares_is_a_fault(world):
    seeds = (f"share/{seed}" for seed in range(300))
    stories = [world.story(seed, {"plot": "share"}) for seed in seeds]
    shared = next(
        s for s in stories if s.state["trait"] == "kind" and "rest" in s.state
    )
    text = shared.text.replace(" kind ", " greedy ", 1)
    faults = world.check(text).faults
    assert [f.slot for f in faults] == ["behavior"]
    assert faults[0].wanted == "keeps" and faults[0].got == "shares"


def test_the_hero_cannot_be_the_own_friend(world, samples):
    sample = next(s for s in samples if s.kind == "story" and "winner" not in s.state)
    hero, friend = sample.state["hero"], sample.state["friend"]
    verdict = world.check(re.sub(rf"\b{friend}\b", hero, sample.text))
    assert not verdict.right and verdict.faults[0].slot == "name"


# --------------------------------------------------------------- explanations


def test_the_bits_of_the_tokens_add_up(world, samples):
    for sample in samples[:6]:
        ends = tokens_of(sample.text)
        tokens = explain(world, sample.text, ends)
        total = math.fsum(token.bits for token in tokens)
        assert math.isclose(total, world.score(sample.text), abs_tol=1e-9)
        assert all(token.bits > -1e-9 for token in tokens)
        before = world.prefix_bits(sample.text[: ends[7]])
        after = world.prefix_bits(sample.text[: ends[8]])
        assert math.isclose(tokens[8].bits, after - before, abs_tol=1e-9)
        assert tokens[-1].label == "end" and len(tokens) == len(ends) + 1


def test_a_settled_word_costs_nothing(world):
    text = world.story("again", {"plot": "gift"}).text
    tokens = explain(world, text, tokens_of(text))
    again = [token for token in tokens if token.label == "color again"]
    assert again and all(token.bits < 1e-9 for token in again)


def test_the_ideal_model_has_no_excess(world, samples):
    def measured(extra):
        for sample in samples[:3]:
            ends = tokens_of(sample.text)
            tokens = explain(world, sample.text, ends)
            bits = [t.bits + extra * (t.label == "name again") for t in tokens]
            yield sample.text, ends, bits

    assert all(math.isclose(r.model, r.floor) for r in excess(world, measured(0)))
    worst = excess(world, measured(0.5))[0]
    assert worst.label == "name again"
    assert math.isclose(worst.model - worst.floor, 0.5 * worst.tokens)


def test_a_text_of_no_world_is_not_explained(world):
    with pytest.raises(ValueError, match="leaves it at 4"):
        explain(world, "Tim xyz", [3, 7])


# -------------------------------------------------------------- conversations


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_accepts_the_answer_and_no_other(world, kind, split):
    for seed in range(12):
        row = json.loads(json.dumps(world.conversation(seed, split, kind)))
        roles = [message["role"] for message in row["conversations"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) <= 8 and row["kind"] == kind
        answer = row["conversations"][-1]["content"]
        assert judge(row, answer) and judge(row, f" {answer}\n")
        assert not judge(row, "") and not judge(row, answer[:-2])


def test_a_story_must_be_the_one_that_was_asked_for(world):
    for seed in range(60):
        row = world.conversation(seed, "train", "story")
        answer = row["conversations"][-1]["content"]
        for slot, word in row["story"].items():
            other = {**row, "story": {**row["story"], slot: "nothing"}}
            assert word in answer and judge(row, answer) and not judge(other, answer)


def test_a_dial_may_be_a_table():
    dial = {**load_dial("nano"), "largest": 3}
    row = json.loads(json.dumps(World(dial).conversation(0, kind="story")))
    assert judge(row, row["conversations"][-1]["content"])


def test_follow_ups_need_what_was_said_before():
    world = World("medium")
    row = world.conversation(0, kind="follow_up")
    assert re.match(r"(And|What about) ", row["conversations"][2]["content"])
    row = world.conversation(0, kind="again")
    assert row["conversations"][1]["content"] == row["conversations"][3]["content"]


def test_test_questions_are_never_asked_in_training(world):
    for (kind, topic), questions in pools(world).items():
        trained = {(q.fact(), q.wording) for q in questions.trained}
        known = {fact for fact, _ in trained}
        assert questions.trained, (kind, topic)
        for question in questions.new_prompt:
            assert (question.fact(), question.wording) not in trained
        assert not known & {question.fact() for question in questions.never_asked}

    def asked(split, novelty=None, count=400):
        rows = [world.conversation(seed, split) for seed in range(count)]
        rows = [r for r in rows if novelty in (None, r["novelty"])]
        turns = [[m["content"] for m in row["conversations"]] for row in rows]
        ends = [
            range(0, len(t), 2) if split == "train" else [len(t) - 2] for t in turns
        ]
        return {
            tuple(texts[: end + 1] if row["kind"] in LATER else texts[end : end + 1])
            for row, texts, places in zip(rows, turns, ends, strict=True)
            for end in places
        }

    assert not asked("train") & asked("test")
    assert asked("test", "new prompt") and asked("test", "never asked")


def test_what_nobody_knows_is_not_in_the_world():
    classes = load("lexicon.toml")["words"]
    unknown = classes["unknown"] + classes["stranger"]
    known = json.dumps({c: w for c, w in classes.items() if w[0] not in unknown})
    assert not any(f'"{word}"' in known for pair in unknown for word in pair)


def test_the_full_dial_talks_in_two_languages():
    world, kinds = World("full"), collections.Counter()
    for seed in range(80):
        row = world.conversation(seed, "test")
        answer = row["conversations"][-1]["content"]
        assert judge(row, answer), row
        kinds[row["kind"], answer.isascii()] += 1
    assert {kind for kind, _ in kinds} > {"town", "tracking", "follow_up", "again"}
    assert {True, False} == {english for _, english in kinds}


def test_unknown_splits_kinds_and_dials_are_named(world):
    with pytest.raises(ValueError, match="no dial 'huge'; there are .*small"):
        World("huge")
    with pytest.raises(ValueError, match="keys of 'small'; see largest"):
        World({k: v for k, v in load_dial("small").items() if k != "largest"})
    with pytest.raises(ValueError, match="'train' and 'test'"):
        world.conversation(0, "dev")
    with pytest.raises(ValueError, match="no kind 'joke'; there are greeting"):
        world.conversation(0, kind="joke")


# --------------------------------------------------------------------- corpus


def checksums():
    """The table of checksums in data/README.md: file -> sha256."""
    text = (ROOT / "data/README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"\| `(\w+\.jsonl)` \|[^|]*\| `(\w{64})` \|", text))


@pytest.mark.slow
def test_the_corpus_is_the_same_on_every_machine(tmp_path):
    about = write_corpus(tmp_path, documents=2000, conversations=900)
    found = {name: entry["sha256"] for name, entry in about["files"].items()}
    assert found == checksums()
    assert json.loads((tmp_path / "about.json").read_text()) == about
    assert {path.name for path in tmp_path.iterdir()} == {*found, "about.json"}


def test_validation_repeats_no_seed_and_has_exact_bits(tmp_path, world):
    write_corpus(tmp_path, documents=1500, conversations=9, validation=60, per_kind=2)
    rows = {
        name: [json.loads(line) for line in open(tmp_path / f"{name}.jsonl")]
        for name in ("train", "validation", "sft_train", "sft_test")
    }
    assert [len(r) for r in rows.values()] == [1500, 60, 9, 2 * len(KINDS)]
    for row in rows["validation"]:
        assert math.isclose(row["bits"], world.score(row["text"]), abs_tol=1e-5)
    stories = {
        split: {row["text"] for row in rows[split] if row["kind"] == "story"}
        for split in ("train", "validation")
    }
    assert not stories["train"] & stories["validation"]
    assert collections.Counter(r["kind"] for r in rows["sft_test"]) == {
        kind: 2 for kind in KINDS
    }


def test_an_unfinished_file_is_never_left(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "sample", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_corpus(tmp_path, documents=3)
    assert not (tmp_path / "train.jsonl").exists()


# -------------------------------------------------------------------- lexicon


def test_templates_are_read_and_checked():
    parts = parse_template("(Old|Little) <hero:name> saw {kind.a}.")
    roles = [(part.role, part.text, part.cls, part.form) for part in parts]
    assert roles == [
        ("free", "", "", "word"),
        ("text", " ", "", "word"),
        ("draw", "hero", "name", "word"),
        ("text", " saw ", "", "word"),
        ("fixed", "kind", "", "word.a"),
        ("text", ".", "", "word"),
    ]
    with pytest.raises(ValueError, match="stray bracket"):
        parse_template("{hero had <toy>.")
    with pytest.raises(ValueError, match="no space after"):
        parse_template("two <toy>s")


def test_ambiguous_words_are_refused():
    items = [make_item("toy", word, {}) for word in ("sun", "sun hat")]
    with pytest.raises(ValueError, match="'sun' begins 'sun hat'"):
        check_words("toy", items)
    with pytest.raises(ValueError, match="same"):
        check_words("toy", [items[0], make_item("toy", "sun", {})])


def test_the_article_fits():
    assert make_item("gear", "umbrella", {}).form("en", "word.a") == "an umbrella"
    assert make_item("gear", "boat", {}).form("en", "word.a") == "a boat"
    assert number(3) is number(3)
    with pytest.raises(ValueError, match="no form 'eats'"):
        make_item("gear", "boat", {}).form("en", "eats")


@pytest.mark.parametrize("dial", DIALS)
def test_the_language_is_right(dial):
    """No 'a apple', no 'one apples', no doubled space, no English in the Chinese."""
    world = World(dial)
    for seed in range(150):
        sample = world.sample(f"language/{seed}")
        text = sample.text
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|  |\s[.,!?]|\.\.", text)
        assert not re.search(r"\b1 [a-z]+s\b|[<>{}|]", text)
        both = sample.kind in ("dictionary", "translation", "retold")
        assert both or re.search(r"[.!?\"。！？”]$", text)
        chinese = re.search("[\u4e00-\u9fff]", text)
        assert both or not (chinese and re.search("[A-Za-z]", text))


def test_the_halves_of_every_sentence_agree():
    for group, templates in World("full").groups.items():
        check_halves(group, templates)
        fixed = [
            [{part.text for part in parts if part.role == "fixed"} for parts in half]
            for half in ([t["en"] for t in templates], [t["zh"] for t in templates])
        ]
        assert all(zh <= en | {"hero", "color"} for en, zh in zip(*fixed, strict=True))
    with pytest.raises(ValueError, match="do not agree"):
        check_halves("group", [{"en": parse_template("<kind>"), "zh": ()}])


def test_a_translation_says_the_same():
    dial = {**load_dial("full"), "documents": {"translation": 1}}
    world = World(dial)
    text = "The fox has a red kite. = 狐狸有一个红色的风筝。"
    more = "\n汤姆是一只勇敢的小狗。 = Tom is a brave dog." * 2
    assert world.check(text + more).right
    faults = world.check(text.replace("红", "蓝") + more).faults
    assert [(fault.slot, fault.wanted) for fault in faults] == [("color", "红色")]


def test_opposites_and_days_go_both_ways(world):
    words = load("lexicon.toml")["words"]
    full = {cls: [make_item(cls, e, {}) for e in words[cls]] for cls in ("word", "day")}
    assert all(len(items) > 6 for items in full.values())
    opposite = {w.form("en"): w.form("en", "opposite") for w in full["word"]}
    assert all(opposite[opposite[word]] == word for word in opposite)
    after = {d.form("en"): d.form("en", "after") for d in full["day"]}
    assert all(d.form("en", "before") in after for d in full["day"])
    assert all(after[d.form("en", "before")] == d.form("en") for d in full["day"])


# ------------------------------------------------------------------- terminal


def run(*arguments, text=None):
    command = [sys.executable, "-m", "littleworld", *arguments]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, cwd=ROOT / "data"
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_the_terminal(tmp_path, world):
    code, out = run("make", str(tmp_path), "--documents", "5", "--conversations", "5")
    assert code == 0 and json.loads(out)["files"]["train.jsonl"]["rows"] == 5
    assert run("sample", "--count", "2", "--dial", "nano")[0] == 0
    text = world.sample(0).text
    assert run("score", text)[1].startswith(f"{world.score(text):.4f} bits")
    assert run("check", text=text + "\n") == (0, "right: a document of kind sums\n")
    code, out = run("check", "Tim was a shy cat. Next")
    assert code == 1 and out == "ungrammatical: it breaks off after 23 characters\n"
    code, out = run("sample", "--dial", "huge")
    assert code == 2 and "there are" in out and "Traceback" not in out
