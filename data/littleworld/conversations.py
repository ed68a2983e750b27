"""Conversations of the same world, and a judge that needs no judgement.

Every question is a (topic, fact, wording): "opposite", hot, the second wording. A fifth
of the facts of each topic is never asked in training ("never asked"), and a fifth of
the wordings of the others is held out too ("new prompt"), always the same ones: so a
test tells what was understood from what was repeated.
"""

import functools
import hashlib
import math
import random
from typing import NamedTuple

from littleworld import plots
from littleworld.engine import Writer, numbers
from littleworld.world import World, load

HELD_OUT = 0.2  # the share of questions that training never sees

# The topics of each kind of conversation, as the lexicon names them.
KNOWLEDGE = {
    "fact": ["says", "eats", "lives"],
    "opposite": ["opposite"],
    "day": ["after", "before"],
    "sum": ["plus", "minus"],
    "counting": ["up", "down"],
}
CHAT = {
    "greeting": ["greetings"],
    "unknown": ["unknown"],
    "story": ["story_kind", "story_name", "story_toy"],
}
KINDS = (*KNOWLEDGE, *CHAT, "story_question")


class Question(NamedTuple):
    """What is asked: slots -> Items or words, and which wording asks it."""

    kind: str
    topic: str
    slots: dict
    wording: int

    def fact(self):
        """The question without its wording, as text."""
        words = [str(value) for value in self.slots.values()]
        return "/".join((self.topic, *words))


def rank(text):
    """A fixed pseudo-random order of texts, the same on every machine."""
    return hashlib.sha256(text.encode()).digest()


def first_fifth(texts):
    """The texts that are held out: the first of them in that order, at least one."""
    ordered = sorted(set(texts), key=rank)
    return set(ordered[: math.ceil(HELD_OUT * len(ordered))])


def facts_of(world, topic):
    """Every fact a topic can ask for, as slots."""
    words, top = world.words, world.dial["count_to"]
    if topic in ("says", "eats", "lives"):
        return [{"kind": kind} for kind in words["kind"]]
    if topic == "opposite":
        return [{"word": word} for word in words["word"]]
    if topic in ("after", "before"):
        return [{"day": day} for day in words["day"]]
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
    if topic == "story_kind":
        return [{"kind": kind} for kind in words["kind"]]
    named = [{"kind": k, "hero": name} for k in words["kind"] for name in words["name"]]
    if topic == "story_name":
        return named
    toys = [{"color": c, "toy": toy} for c in words["color"] for toy in words["toy"]]
    return [{**person, **thing} for person in named for thing in toys]


def chat_questions(topic):
    """Questions about nothing in the world: small talk, and what nobody knows."""
    chat = load("lexicon.toml")["chat"]
    if topic == "greetings":
        for index, greeting in enumerate(chat["greetings"]):
            for wording in range(len(greeting["ask"])):
                yield Question("greeting", topic, {"greeting": index}, wording)
    else:
        for wording, text in enumerate(chat["unknown"]):
            slot = "unknown" if "{unknown}" in text else "stranger"
            for word in chat[f"{slot}_words"]:
                yield Question("unknown", topic, {slot: word}, wording)


def questions_of(world, kind, topic):
    """Every question of a topic, in every wording."""
    if topic in ("greetings", "unknown"):
        return list(chat_questions(topic))
    if kind == "story":
        wordings = len(load("lexicon.toml")["chat"][topic])
    else:
        wordings = len(world.groups[f"ask.{topic}"])
    return [
        Question(kind, topic, slots, wording)
        for slots in facts_of(world, topic)
        for wording in range(wordings)
    ]


class Pools(NamedTuple):
    """The questions of a topic, by what training knows of them."""

    trained: list
    new_prompt: list
    never_asked: list


def split(questions):
    """Hold out a fifth of the facts, and a fifth of the wordings of the others."""
    few = len({question.fact() for question in questions}) <= 5  # the greetings
    never = set() if few else first_fifth(question.fact() for question in questions)
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
        for kind, topics in {**KNOWLEDGE, **CHAT}.items()
        for topic in topics
    }


# ------------------------------------------------------------- one exchange


def ask(world, question, seed):
    """The user's text, the assistant's answer, and what the judge needs."""
    if question.topic == "greetings":
        return greet(question)
    if question.topic == "unknown":
        chat = load("lexicon.toml")["chat"]
        text = chat["unknown"][question.wording].format(**question.slots)
        return text, chat["no_answer"], {"answers": [chat["no_answer"]]}
    if question.kind == "story":
        return request_story(world, question, seed)
    writer = Writer(world, random.Random(seed), question.slots)
    writer.say(world.groups[f"ask.{question.topic}"][question.wording])
    text, writer.pieces = writer.text, []
    plots.work_out(writer, question.topic)
    writer.tell(f"reply.{question.topic}")
    return text, writer.text, {"answers": [writer.text]}


def greet(question):
    greeting = load("lexicon.toml")["chat"]["greetings"][question.slots["greeting"]]
    text, answer = greeting["ask"][question.wording], greeting["reply"]
    return text, answer, {"answers": [answer]}


def request_story(world, question, seed):
    """A request for a story, one story that fits, and its constraints."""
    rng, forced = random.Random(seed), dict(question.slots)
    if "toy" in forced:
        forced["plot"] = rng.choice(toy_plots(world))
    story = world.story(f"{seed}/story", forced)
    writer = Writer(world, rng)
    writer.state = question.slots
    writer.say(world.request(question.topic, question.wording))
    words = {slot: item.form("en") for slot, item in question.slots.items()}
    return writer.text, story.text, {"story": words, "dial": world.dial_name}


def toy_plots(world):
    return [plot for plot in world.dial["plots"] if plot in plots.WITH_TOY]


def story_question(world, seed):
    """A story in the context, and a question about it."""
    writer = world.write(f"{seed}/story", plots.story)
    story, writer.pieces = writer.text, []
    topics = [t for t in world.topics("ask_story") if plots.answerable(writer, t)]
    topic = topics[int(writer.random() * len(topics))]
    writer.join = ""
    writer.tell(f"ask_story.{topic}")
    text, writer.pieces, writer.join = f"{story}\n{writer.text}", [], ""
    writer.tell(f"reply_story.{topic}")
    return text, writer.text, {"answers": [writer.text]}


# ------------------------------------------------------------ conversations


def conversation(world, seed, split="train", kind=None):
    """The conversation of this seed: messages, kind, novelty, what the judge needs.

    split="test" asks what training never asks: `novelty` says whether the fact is
    known from other wordings ("new prompt") or not ("never asked").
    """
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}; there are 'train' and 'test'")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    seed = f"conversation/{split}/{seed}"
    rng = random.Random(seed)
    kind = kind or pick(rng, KINDS)
    earlier = []
    if kind != "story_question":
        for turn in range(pick(rng, (0, 0, 1, 2))):
            earlier += messages(*small_exchange(world, rng, f"{seed}/{turn}"))
    text, answer, needs, novelty = last_exchange(world, rng, seed, split, kind)
    return {
        "conversations": earlier + messages(text, answer),
        "kind": kind,
        "novelty": novelty,
        **needs,
    }


def pick(rng, options):
    """One of the options; only rng.random() is promised to repeat everywhere."""
    return options[int(rng.random() * len(options))]


def messages(text, answer, *_):
    return [
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
    ]


def draw(world, rng, kind, novelty="trained"):
    """A question of this kind and novelty, topics having equal chances."""
    fitting = [
        questions
        for (its_kind, _), its_pools in pools(world).items()
        if its_kind == kind
        and (questions := getattr(its_pools, novelty.replace(" ", "_")))
    ]
    return pick(rng, pick(rng, fitting))


def small_exchange(world, rng, seed):
    """An earlier exchange: anything short that training knows."""
    kind = pick(rng, [kind for kind in KINDS if not kind.startswith("story")])
    return ask(world, draw(world, rng, kind), seed)


def last_exchange(world, rng, seed, split, kind):
    """The exchange that is judged."""
    if kind == "story_question":
        novelty = "trained" if split == "train" else "never asked"
        return *story_question(world, seed), novelty
    novelty = "trained"
    if split == "test":
        novelty = pick(rng, ("new prompt", "never asked"))
        if kind == "greeting":
            novelty = "new prompt"
    return *ask(world, draw(world, rng, kind, novelty), seed), novelty


@functools.lru_cache(8)
def world_of(dial):
    return World(dial)


def judge(example, reply, world=None):
    """Is the reply right? Exactly: one of the answers, or a story that was asked for.

    Example:
        >>> judge({"answers": ["6 5 4."]}, " 6 5 4.\\n")
        True
    """
    reply = reply.strip()
    if "answers" in example:
        return reply in example["answers"]
    verdict = (world or world_of(example["dial"])).check(reply)
    wanted = example["story"].items()
    return (
        verdict.right
        and verdict.kind == "story"
        and all(verdict.state.get(slot) == word for slot, word in wanted)
    )
