"""Conversations of the same world, and a judge that needs no judgement.

Every question is a (topic, fact, wording): "opposite", hot, the second wording. A fifth
of the facts of each topic is never asked in training ("never asked"), and a fifth of
the wordings of the others is held out too ("new prompt"), always the same ones: so a
test tells what was understood from what was repeated.
"""

import functools
import hashlib
import itertools
import json
import math
import random
from typing import NamedTuple

from littleworld import plots
from littleworld.engine import Writer, numbers
from littleworld.world import World

MOST_FACTS = 5000  # of a topic with more (stories to order), every n-th is asked
HELD_OUT = 0.2  # the share of questions that training never sees

# Kinds that ask about something that can be listed, and their topics in the lexicon.
TOPICS = {
    "greeting": ["hello", "who", "can", "thanks", "bye"],
    "fact": ["says", "eats", "lives"],
    "opposite": ["opposite"],
    "day": ["after", "before"],
    "sum": ["plus", "minus"],
    "counting": ["up", "down"],
    "town": ["house", "pet", "job", "likes"],
    "unknown": ["unknown", "stranger"],
    "refusal": ["refuse"],
    "story": ["story_kind", "story_name", "story_toy"],
}
# Kinds that ask about a text just told: the program that tells it, and the questions.
CONTEXTS = {
    "story_question": (plots.story, "story"),
    "tracking": (plots.moves, "tracking"),
}
SHORT = ("greeting", "fact", "opposite", "day", "sum", "counting", "town", "unknown")


class Question(NamedTuple):
    """What is asked: a topic, the Items in its slots, and which wording asks it."""

    kind: str
    topic: str
    slots: dict
    wording: int

    def fact(self):
        """The question without its wording, as text."""
        return "/".join((self.topic, *map(str, self.slots.values())))


def rank(text):
    """A fixed pseudo-random order of texts, the same on every machine."""
    return hashlib.sha256(text.encode()).digest()


def first_fifth(texts):
    """The texts that are held out: the first of them in that order, at least one."""
    ordered = sorted(set(texts), key=rank)
    return set(ordered[: math.ceil(HELD_OUT * len(ordered))])


def facts_of(world, topic):
    """Every fact a topic can ask for, as slots with their Items."""
    words, top = world.words, world.dial["count_to"]
    if topic in TOPICS["greeting"]:
        return [{}]
    if topic in ("plus", "minus"):
        return [
            {"x": x, "y": y}
            for x in numbers(0, world.dial["largest"])
            for y in numbers(0, world.dial["largest"])
            if topic == "plus" or y.value <= x.value
        ]
    if topic in ("up", "down"):
        return [
            {"first": first, "last": last}
            for first in numbers(0, top - 2)
            for last in numbers(first.value + 2, min(top, first.value + 7))
        ]
    template = world.groups[f"ask.{topic}"][0]["en"]
    draws = {part.text: words[part.cls] for part in template if part.role == "draw"}
    facts = list(itertools.product(*draws.values()))
    step = 1 + len(facts) // MOST_FACTS
    return [dict(zip(draws, items, strict=True)) for items in facts[::step]]


def questions_of(world, kind, topic):
    """Every question of a topic, in every wording."""
    return [
        Question(kind, topic, slots, wording)
        for slots in facts_of(world, topic)
        for wording in range(len(world.groups[f"ask.{topic}"]))
    ]


class Pools(NamedTuple):
    """The questions of a topic, by what training knows of them."""

    trained: list
    new_prompt: list
    never_asked: list


def split(questions):
    """Hold out a fifth of the facts, and a fifth of the wordings of the others."""
    facts = {question.fact() for question in questions}
    never = first_fifth(facts) if len(facts) > 1 else set()
    seen = [q for q in questions if q.fact() not in never]
    prompts = first_fifth(f"{q.fact()}#{q.wording}" for q in seen)
    is_new = [f"{q.fact()}#{q.wording}" in prompts for q in seen]
    return Pools(
        [q for q, new in zip(seen, is_new, strict=True) if not new],
        [q for q, new in zip(seen, is_new, strict=True) if new],
        [q for q in questions if q.fact() in never],
    )


@functools.lru_cache(8)
def pools(world):
    """(kind, topic) -> Pools, for all that can be listed."""
    return {
        (kind, topic): split(questions_of(world, kind, topic))
        for kind, topics in TOPICS.items()
        for topic in topics
    }


# ------------------------------------------------------------- one exchange


class Exchange(NamedTuple):
    """What is asked and answered, what the judge needs, what was said before."""

    text: str
    answer: str
    needs: dict
    earlier: list = []


def pick(rng, options):
    """One of the options; only rng.random() is promised to repeat everywhere."""
    return options[int(rng.random() * len(options))]


def draw(world, rng, kind, novelty="trained"):
    """A question of this kind and novelty, topics having equal chances."""
    fitting = [
        questions
        for (its_kind, _), its_pools in pools(world).items()
        if its_kind == kind
        and (questions := getattr(its_pools, novelty.replace(" ", "_")))
    ]
    return pick(rng, pick(rng, fitting))


def ask(world, question, language, seed):
    """Ask a question that can be listed."""
    writer = Writer(world, random.Random(seed), question.slots)
    writer.language = language
    writer.say(world.groups[f"ask.{question.topic}"][question.wording])
    if question.kind == "story":
        return request_story(world, question, language, seed, writer.text)
    plots.work_out(writer, question.topic)
    return answer(writer, writer.text, f"reply.{question.topic}")


def answer(writer, text, group, earlier=()):
    """The exchange whose answer the writer tells from this group."""
    writer.pieces, writer.join = [], ""
    writer.tell(group)
    return Exchange(text, writer.text, {"answers": [writer.text]}, list(earlier))


def request_story(world, question, language, seed, text):
    """A story that fits a request, and its constraints."""
    forced = dict(question.slots)
    if "toy" in forced:
        fitting = [plot for plot in world.dial["plots"] if plot in plots.WITH_TOY]
        forced["plot"] = pick(random.Random(seed), fitting)
    story = world.story(f"{seed}/story", forced, language)
    words = {slot: item.form("en") for slot, item in question.slots.items()}
    return Exchange(text, story.text, {"story": words, "dial": world.dial_name})


def ask_about(world, kind, language, seed):
    """Tell a text, and ask about it."""
    program, section = CONTEXTS[kind]
    writer = world.write(f"{seed}/{kind}", program, language=language)
    told = writer.text
    topics = [
        topic
        for topic in world.topics(f"ask_{section}")
        if writer.knows(f"ask_{section}.{topic}")
        and writer.knows(f"reply_{section}.{topic}")
    ]
    topic = topics[int(writer.random() * len(topics))]
    writer.pieces, writer.join = [told, "\n"], ""
    writer.tell(f"ask_{section}.{topic}")
    return answer(writer, writer.text, f"reply_{section}.{topic}")


def follow_up(world, rng, language, novelty, seed):
    """'What does the cat eat?' and then only 'And the dog?'"""
    first = draw(world, rng, pick(rng, ("fact", "opposite", "day")))
    then = first
    while then.fact() == first.fact() or then.topic != first.topic:
        then = draw(world, rng, first.kind, novelty)
    earlier = ask(world, first, language, seed)
    writer = Writer(world, rng, then.slots)
    writer.language = language
    (slot,) = then.slots
    writer.tell(f"follow.{slot}")
    said = messages(earlier.text, earlier.answer)
    return answer(writer, writer.text, f"reply.{then.topic}", said)


def again(world, rng, language, novelty, seed):
    """The last answer, once more."""
    kinds = [kind for kind in SHORT if kind in world.dial["conversations"]]
    kinds.remove("greeting")
    earlier = ask(world, draw(world, rng, pick(rng, kinds), novelty), language, seed)
    writer = Writer(world, rng)
    writer.language = language
    writer.tell("follow.again")
    said = messages(earlier.text, earlier.answer)
    return Exchange(writer.text, earlier.answer, {"answers": [earlier.answer]}, said)


def translate(world, rng, language, novelty):
    """A sentence, and the same in the other language; a fifth is kept for the test."""
    while True:
        writer = Writer(world, rng)
        writer.language = language
        writer.tell("follow.translate")
        writer.tell("translation.sentence")
        text, writer.pieces, writer.join = writer.text, [], ""
        held_out = rank(text)[0] < HELD_OUT * 256
        if held_out == (novelty != "trained"):
            writer.language = "zh" if language == "en" else "en"
            writer.retell(writer.last)
            return Exchange(text, writer.text, {"answers": [writer.text]})


def exchange(world, rng, kind, language, novelty, seed):
    """An exchange of any kind."""
    if kind in CONTEXTS:
        return ask_about(world, kind, language, seed)
    if kind == "follow_up":
        return follow_up(world, rng, language, novelty, seed)
    if kind == "again":
        return again(world, rng, language, novelty, seed)
    if kind == "translation":
        return translate(world, rng, language, novelty)
    return ask(world, draw(world, rng, kind, novelty), language, seed)


# ------------------------------------------------------------ conversations


def conversation(world, seed, split="train", kind=None):
    """The conversation of this seed: messages, kind, novelty, what the judge needs.

    split="test" asks what training never asks: `novelty` says whether the fact is
    known from other wordings ("new prompt") or not ("never asked").
    """
    kinds = world.dial["conversations"]
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
    if kind is not None and kind not in kinds:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(kinds)}")
    seed = f"conversation/{split}/{seed}"
    rng = random.Random(seed)
    kind = kind or pick(rng, kinds)
    language = choose_language(world, rng)
    novelty = choose_novelty(rng, split, kind)
    said = []
    if kind in TOPICS:  # the others have something before them anyway, or a text
        for turn in range(pick(rng, (0, 0, 1, 2))):
            said += small_talk(world, rng, language, f"{seed}/{turn}")
    last = exchange(world, rng, kind, language, novelty, seed)
    return {
        "conversations": said + last.earlier + messages(last.text, last.answer),
        "kind": kind,
        "novelty": novelty,
        **last.needs,
    }


def choose_language(world, rng):
    """A language of the dial, by its share."""
    languages = world.dial["languages"]
    mark = rng.random() * sum(languages.values())
    for language in languages:
        mark -= languages[language]
        if mark < 0:
            return language
    return language


def choose_novelty(rng, split, kind):
    """Half of the tests are about facts that training never asks for."""
    novelty = pick(rng, ("new prompt", "never asked"))
    if split == "train":
        return "trained"
    if kind in TOPICS:
        return "new prompt" if kind == "greeting" else novelty
    return "never asked"


def small_talk(world, rng, language, seed):
    """An earlier exchange: anything short that training knows."""
    kinds = [kind for kind in SHORT if kind in world.dial["conversations"]]
    earlier = ask(world, draw(world, rng, pick(rng, kinds)), language, seed)
    return messages(earlier.text, earlier.answer)


def messages(text, answer):
    """One exchange as two messages."""
    return [
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
    ]


# -------------------------------------------------------------------- judge


@functools.lru_cache(8)
def world_of(dial):
    """The world of a dial's name, or of its table as JSON."""
    return World(json.loads(dial))


def judge(example, reply):
    """Is the reply right? Exactly: one of the answers, or a story that was asked for.

    Example:
        >>> judge({"answers": ["6 5 4."]}, " 6 5 4.\n")
        True
    """
    reply = reply.strip()
    if "answers" in example:
        return reply in example["answers"]
    verdict = world_of(json.dumps(example["dial"])).check(reply)
    wanted = example["story"].items()
    return (
        verdict.right
        and verdict.kind == "story"
        and all(verdict.state.get(slot) == word for slot, word in wanted)
    )
