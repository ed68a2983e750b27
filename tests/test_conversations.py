"""Little World's conversations: each kind, what it needs, what its judge accepts."""

import doctest
import math
import random
import re
from collections import Counter

import pytest
from littleworld import World, conversations, judge, plots
from littleworld.conversations import (
    IN_CONTEXT,
    LATER,
    SHORT,
    TOPICS,
    draw,
    kinds_in_turn,
    pools,
    spell_out,
    wordings,
)
from littleworld.engine import Writer, parse_template, read


@pytest.fixture(scope="module")
def world():
    return World()


def rows_of(world, kind, count=60, split="train"):
    return [world.conversation(seed, split, kind) for seed in range(count)]


def texts_of(row):
    return [message["content"] for message in row["conversations"]]


def test_free_words_are_spelt_out():
    halves = spell_out(parse_template("(Hello|Hi)(!|, <hero:name>!)"))
    said = ["".join(part.text for part in parts) for parts in halves]
    assert said == ["Hello!", "Hello, <hero:name>!", "Hi!", "Hi, <hero:name>!"]


def test_a_wording_says_one_thing_only(world):
    """The same words must not ask for two answers, nor stand twice in the lexicon."""
    for language in ("en", "zh"):
        said = Counter(
            "".join(part.text for part in wording[language])
            for topic in TOPICS["greeting"]
            for wording in wordings(world, f"ask.{topic}")
        )
        assert said.most_common(1)[0][1] == 1


def test_small_talk_is_held_out_as_paraphrases(world):
    """Each word of a held-out phrase is known to training from other phrases."""

    def words(questions):
        return {
            word
            for q in questions
            for part in wordings(world, f"ask.{q.topic}")[q.wording]["en"]
            for word in re.findall(r"\w+", part.text)
        }

    for topic in TOPICS["greeting"]:
        topics = pools(world)["greeting", topic]
        assert len(topics.trained) > 10 and len(topics.new_prompt) >= 3
        assert words(topics.new_prompt) <= words(topics.trained)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TOPICS, *LATER, "story_question"])
def test_the_test_holds_nothing_that_training_answers(kind):
    """No test question, with all that was said before it, is one of training."""
    world = World("medium" if kind == "town" else "small")
    trained = {
        tuple(texts[: place + 1])
        for row in rows_of(world, kind, 400)
        for texts in [texts_of(row)]
        for place in range(0, len(texts), 2)
    }
    asked = {tuple(texts_of(row)[:-1]) for row in rows_of(world, kind, 80, "test")}
    assert not trained & asked


def test_a_story_may_be_asked_to_end_in_a_way(world):
    seen = set()
    for row in rows_of(world, "story", 300):
        wish, story = texts_of(row)[-2:]
        if "ends" not in row:
            continue
        seen.add(ending := wish.rsplit(" ends ")[1].rstrip(".?"))
        assert judge(row, story)
        if ending == "at home":
            assert story.endswith("walked home.")
        sentences = re.findall(r" ?[^.!?]+[.!?]\"?", story)
        without = "".join(sentences[:-1])
        assert world.check(without).right and not judge(row, without)
    assert seen == {"at home", "with two friends together", "with a moral"}


@pytest.mark.parametrize("dial", ["small", "full"])
def test_shorter_says_what_happened(dial):
    world, plots = World(dial), set()
    for row in rows_of(world, "shorter", 120):
        _, story, wish, short = texts_of(row)
        assert 3 * len(short) < len(story) and not judge(row, story)
        if short.isascii():
            assert re.search(r"shorter|in few words|in short|too long", wish)
            names = re.findall(r"[A-Z][a-z]+", short)
            assert names and all(name in story for name in names)
            plots.add(re.sub(r"[A-Z][a-z]+", "_", short).split()[1])
        assert world.check(story).right
    assert len(plots) >= 5


def test_what_training_has_more_of(world):
    turns = kinds_in_turn(world, "train")
    assert Counter(turns)["story"] > Counter(turns)["fact"] == 1
    assert Counter(kinds_in_turn(world, "test")) == Counter(set(turns))
    rows = [row for row in rows_of(world, "story", 300) if "toy" in row["story"]]
    assert 75 < len(rows) < 150  # three of eight


def test_novelty_tells_what_is_new(world):
    for kind in world.dial["conversations"]:
        novelties = {row["novelty"] for row in rows_of(world, kind, 30, "test")}
        if kind in IN_CONTEXT:
            assert novelties == {"new context"}
        else:
            assert novelties <= {"new prompt", "never asked"}
        assert {row["novelty"] for row in rows_of(world, kind, 5)} == {"trained"}


def test_a_name_is_known_only_if_it_was_said(world):
    known = 0
    for row in rows_of(world, "recall", 100):
        texts = texts_of(row)
        if match := re.search(r"(?:My name is|I am) (\w+)\.", texts[0]):
            assert row["answers"] == [f"Your name is {match[1]}."]
            known += 1
        else:
            assert row["answers"] == ["I do not know."]
    assert 50 < known < 95


def test_again_repeats_and_follow_up_goes_on(world):
    for row in rows_of(world, "again"):
        texts = texts_of(row)
        assert texts[1] == texts[3] and judge(row, texts[1])
    for row in rows_of(world, "follow_up"):
        first, answer, then, reply = texts_of(row)
        asked = re.findall(r"\w+", then)[-1]
        assert asked in re.findall(r"\w+", reply) and answer != reply
        assert asked not in re.findall(r"\w+", first)


def test_bad_wishes_are_refused_politely(world):
    for row in rows_of(world, "refusal"):
        assert texts_of(row)[-1] == "I am sorry, I will not help with that."


def stories_in(row):
    """(place, text) of the stories that the assistant tells before its last answer."""
    return [(n, text) for n, text in enumerate(texts_of(row)[1:-2:2]) if text[90:]]


def reads(world, text, kind):
    """Does the reader of documents, as an oracle, accept it as one of this kind?"""
    return world.score(text) < math.inf and world.check(text).kind == kind


def test_any_question_may_follow_a_story_that_the_assistant_told():
    world, told = World("medium"), Counter()
    for kind in TOPICS:
        for row in rows_of(world, kind):
            assert judge(row, texts_of(row)[-1])
            told[kind] += len(stories_in(row))
            assert all(reads(world, text, "story") for _, text in stories_in(row))
    assert all(3 <= told[kind] <= 20 for kind in (*SHORT, "story", "refusal")), told
    nano = World("nano")  # too small for that
    assert not any(stories_in(row) for row in rows_of(nano, "fact"))


def test_questions_about_an_own_story_are_answered_by_it():
    """The story with question and answer is a document, and with another is not."""
    world, asked, others = World("medium"), Counter(), 0
    for split in ("train", "test"):
        rows = rows_of(world, "own_story", 40, split)
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True):
            ((place, story),), texts = stories_in(row), texts_of(row)
            later = texts[2 * place + 2 :]
            pages = [
                f"{story}\nQ: {question} A: {reply}"
                for question, reply in zip(later[::2], later[1::2], strict=True)
            ]
            about = [page for page in pages if reads(world, page, "story_questions")]
            assert pages[-1] in about and judge(row, texts[-1])
            assert len(set(about)) == len(about) and not judge(row, story)
            asked[len(about)] += 1
            others += len(pages) - len(about)
            strange = pages[-1].replace(story, stories_in(other)[0][1])
            asked["strange"] += world.score(strange) < math.inf
    assert asked[1] > asked[2] > 10 and others > 10, asked
    assert asked["strange"] < 10  # few answers fit another story too


def translations(world, text, language):
    """The translation of every derivation of a story."""

    def told(t):
        t.language, t.record = language, []
        plots.story(t)

    for reader in read(told, world, text):
        writer = Writer(world, random.Random(0))
        writer.language = "zh" if language == "en" else "en"
        for template, writer.state, chosen in reader.record:
            writer.retell(template, chosen)
        yield writer.text


@pytest.mark.slow
@pytest.mark.parametrize("dial", ["full", "big"])
def test_a_story_has_one_translation(dial):
    """As documents of the kind `retold` hold it; a fifth is kept for the test."""
    world, ways, known = World(dial), Counter(), set()
    for split in ("train", "test"):
        for row in rows_of(world, "retold", 16, split):
            wish, story = texts_of(row)[0].split("\n")
            language = "en" if story.isascii() else "zh"
            (other,) = set(translations(world, story, language))
            assert row["answers"] == [other] and judge(row, other)
            assert not judge(row, other[:-1]) and not judge(row, story)
            assert reads(world, story, "story") and reads(world, other, "story")
            ways[wish] += 1
            if dial == "big":
                again = {"en": "The same in Chinese:", "zh": "同一个故事的英文："}
                page = f"{story}\n{again[language]}\n{other}"
                assert reads(world, page, "retold")
            (known.add if split == "train" else known.discard)(story)
    assert ways.keys() == {"Translate into Chinese:", "翻译成英文："}
    assert min(ways.values()) > 5 and len(known) == 16


def test_who_speaks_one_language_is_asked_for_no_translation():
    for dial in ("nano", "small", "medium", "chinese"):
        assert not {"translation", "retold"} & set(World(dial).dial["conversations"])


def test_the_examples_of_the_docstrings_are_right():
    found = doctest.testmod(conversations)
    assert found.attempted and not found.failed


def test_every_novelty_has_questions(world):
    rng = random.Random(0)
    for kind in set(world.dial["conversations"]) & set(TOPICS):
        for novelty in ("trained", "new prompt", "never asked"):
            if (kind, novelty) != ("greeting", "never asked"):
                assert draw(world, rng, kind, novelty).kind == kind


@pytest.mark.parametrize("dial", ["medium", "full", "chinese"])
def test_every_dial_and_language(dial):
    world = World(dial)
    for kind in world.dial["conversations"]:
        for row in rows_of(world, kind, 12, "test"):
            assert judge(row, texts_of(row)[-1])
            assert not re.search(r"[<>{}()|]|  |\.\.", " ".join(texts_of(row)))
