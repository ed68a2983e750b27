"""Conversations of the same world, and a judge that needs no judgement.

Every question is a (topic, fact, wording): "opposite", hot, the second wording. A fifth
of the facts of each topic is never asked in training ("never asked"), and a fifth of
the wordings of the others is held out too ("new prompt"), always the same ones: so a
test tells what was understood from what was repeated. Small talk has no facts, but
many wordings: a held-out one puts together parts that training knows from others.
"""

import functools
import hashlib
import itertools
import json
import math
import random
from typing import NamedTuple

from littleworld import plots
from littleworld.engine import Part, Writer, numbers
from littleworld.world import World

MOST_FACTS = 5000  # of a topic with more (stories to order), every n-th is asked
HELD_OUT = 0.2  # the share of questions that training never sees

# Kinds that ask about something that can be listed, and their topics in the lexicon.
TOPICS = {
    "greeting": ["hello", "how", "who", "can", "thanks", "bye"],
    "fact": ["says", "eats", "lives"],
    "opposite": ["opposite"],
    "day": ["after", "before"],
    "sum": ["plus", "minus"],
    "counting": ["up", "down"],
    "town": ["house", "pet", "job", "likes"],
    "unknown": ["unknown", "stranger"],
    "refusal": ["refuse", "rude"],
    "story": ["story_kind", "story_name", "story_toy", "story_end"],
}
# Kinds that ask about a text just told: the program that tells it, and the questions.
CONTEXTS = {
    "story_question": (plots.story, "story"),
    "tracking": (plots.moves, "tracking"),
}
# How often training has a kind or a topic, beside 1 for the others: more of what takes
# longer to learn. A test has as many of each kind.
WEIGHTS = {"story": 5, "greeting": 2, "again": 2, "story_question": 2}
WEIGHTS |= {"own_story": 2, "story_toy": 3, "story_end": 3}
TOLD = 0.15  # how often a question has a story of the assistant's before it
# Kinds that ask for nothing but what stands in the conversation itself.
IN_CONTEXT = (*CONTEXTS, "again", "shorter", "recall", "own_story")
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
    template = wordings(world, f"ask.{topic}")[0]["en"]
    draws = {part.text: words[part.cls] for part in template if part.role == "draw"}
    facts = list(itertools.product(*draws.values()))
    step = 1 + len(facts) // MOST_FACTS
    return [dict(zip(draws, items, strict=True)) for items in facts[::step]]


@functools.lru_cache(1024)
def wordings(world, group):
    """The templates of a group with every choice of their free words made."""
    made = []
    for template in world.groups[group]:
        halves = {name: spell_out(parts) for name, parts in template.items()}
        made += [
            dict(zip(halves, both, strict=True))
            for both in zip(*halves.values(), strict=True)
        ]
    return made


def spell_out(parts):
    """A template's half, once for every choice of its free words."""
    choices = [
        [Part("text", word) for word in part.words] if part.role == "free" else [part]
        for part in parts
    ]
    return list(itertools.product(*choices))


def questions_of(world, kind, topic):
    """Every question of a topic, in every wording."""
    return [
        Question(kind, topic, slots, wording)
        for slots in facts_of(world, topic)
        for wording in range(len(wordings(world, f"ask.{topic}")))
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
    """A question of this kind and novelty, the topics by their weights."""
    fitting = [
        questions
        for (its_kind, topic), its_pools in pools(world).items()
        if its_kind == kind
        and (questions := getattr(its_pools, novelty.replace(" ", "_")))
        for _ in range(WEIGHTS.get(topic, 1) if novelty == "trained" else 1)
    ]
    return pick(rng, pick(rng, fitting))


def ask(world, question, language, seed):
    """Ask a question that can be listed."""
    writer = Writer(world, random.Random(seed), question.slots)
    writer.language = language
    writer.say(wordings(world, f"ask.{question.topic}")[question.wording])
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
    writer, needs = write_story(world, question, language, seed)
    return Exchange(text, writer.text, needs)


def write_story(world, question, language, seed):
    """The writer of a story that fits a request, and what its judge needs."""
    forced = dict(question.slots)
    ending = forced.pop("ending", None)
    if "toy" in forced:
        fitting = [plot for plot in world.dial["plots"] if plot in plots.WITH_TOY]
        forced["plot"] = pick(random.Random(seed), fitting)
    ends = tails(world, ending, language)
    writers = (
        world.write(f"{seed}/story{'/again' * turn}", plots.story, forced, language)
        for turn in itertools.count()
    )
    writer = next(writer for writer in writers if writer.text.endswith(ends))
    words = {s: item.form("en") for s, item in forced.items() if s != "plot"}
    needs = {"story": words, "dial": world.dial_name}
    return writer, needs | ({"ends": ends} if ending else {})


def tails(world, ending, language):
    """The words with which a story may end: all, if no ending is asked for."""
    if ending is None:
        return ("",)
    if ending.knows("tail"):
        return (ending.form(language, "tail"),)
    morals = [f"{plot}.moral" for plot in world.dial["plots"]]
    return tuple(world.groups[moral][0][language][0].text for moral in morals)


def ask_about(world, kind, language, seed):
    """Tell a text, and ask about it."""
    program, section = CONTEXTS[kind]
    writer = world.write(f"{seed}/{kind}", program, language=language)
    topics = answerable(writer, section)
    topic = topics[int(writer.random() * len(topics))]
    return ask_topic(writer, section, topic, [writer.text, "\n"])


def answerable(writer, section):
    """The questions that what was told answers."""
    return [
        topic
        for topic in writer.world.topics(f"ask_{section}")
        if writer.knows(f"ask_{section}.{topic}")
        and writer.knows(f"reply_{section}.{topic}")
    ]


def ask_topic(writer, section, topic, before=(), earlier=()):
    """Ask this about what the writer has told, after the text `before`."""
    writer.pieces, writer.join = list(before), ""
    writer.tell(f"ask_{section}.{topic}")
    return answer(writer, writer.text, f"reply_{section}.{topic}", earlier)


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


def say(world, rng, language, group, slots=()):
    """What a group says in one of its wordings."""
    writer = Writer(world, rng, dict(slots))
    writer.language = language
    writer.tell(group)
    return writer.text


def again(world, rng, language, novelty, seed):
    """The last answer, once more."""
    kinds = [kind for kind in SHORT if kind in world.dial["conversations"]]
    kinds.remove("greeting")
    earlier = ask(world, draw(world, rng, pick(rng, kinds), novelty), language, seed)
    text = say(world, rng, language, "follow.again")
    said = messages(earlier.text, earlier.answer)
    return Exchange(text, earlier.answer, {"answers": [earlier.answer]}, said)


def shorter(world, rng, language, novelty, seed):
    """A story that was asked for, and then in one sentence what happened in it."""
    question = draw(world, rng, "story", novelty)
    while question.topic not in ("story_kind", "story_name"):
        question = draw(world, rng, "story", novelty)
    wish = Writer(world, rng, question.slots)
    wish.language = language
    wish.say(wordings(world, f"ask.{question.topic}")[question.wording])
    plot = pick(rng, world.dial["plots"])
    forced = {**question.slots, "plot": plot}
    writer = world.write(f"{seed}/story", plots.story, forced, language)
    if plot == "share" and "part" not in writer:
        plot = "keeps"
    said = messages(wish.text, writer.text)
    text = say(world, rng, language, "follow.shorter")
    return answer(writer, text, f"short.{plot}", said)


def told_story(world, rng, language, novelty, seed):
    """A wish for a story and the story, as messages, and the story's writer."""
    question = draw(world, rng, "story", novelty)
    wish = Writer(world, rng, question.slots)
    wish.language = language
    wish.say(wordings(world, f"ask.{question.topic}")[question.wording])
    writer, _ = write_story(world, question, language, seed)
    return messages(wish.text, writer.text), writer


def own_story(world, rng, language, novelty, seed):
    """The assistant tells a story, goes on talking, and is asked about it."""
    turns = pick(rng, (0, 0, 1, 2))
    said, place = [], pick(rng, range(turns + 1))
    for turn in range(place):
        said += small_talk(world, rng, language, f"{seed}/{turn}")
    told, writer = told_story(world, rng, language, novelty, seed)
    said, topics = said + told, answerable(writer, "story")
    for turn in range(place, turns):
        if rng.random() < 0.5:
            said += small_talk(world, rng, language, f"{seed}/{turn}")
        else:
            topics.remove(topic := pick(rng, topics))
            asked = ask_topic(writer, "story", topic)
            said += messages(asked.text, asked.answer)
    return ask_topic(writer, "story", pick(rng, topics), earlier=said)


def retold(world, rng, language, novelty, seed):
    """A whole story, and the same in the other language; a fifth is for the test."""
    other = "zh" if language == "en" else "en"
    text = say(world, rng, language, "follow.translate")
    for turn in itertools.count():
        writer = Writer(world, random.Random(f"{seed}/retold/{turn}"))
        writer.language, writer.record = language, []
        plots.story(writer)
        held_out = rank(writer.text)[0] < HELD_OUT * 256
        if held_out == (novelty != "trained"):
            break
    text, sentences = f"{text}\n{writer.text}", writer.record
    writer.language, writer.pieces, writer.join = other, [], ""
    for template, writer.state, chosen in sentences:
        writer.retell(template, chosen)
    return Exchange(text, writer.text, {"answers": [writer.text]})


def recall(world, rng, language, novelty, seed):
    """Somebody says a name, talks of other things, and asks for the name."""
    while True:
        writer = Writer(world, rng)
        writer.language = language
        writer.tell("follow.my_name")
        hello = answer(writer, writer.text, "reply_follow.my_name")
        text = say(world, rng, language, "follow.recall")
        held_out = rank(f"{hello.text} {text}")[0] < HELD_OUT * 256
        if held_out == (novelty != "trained"):
            break
    said = messages(hello.text, hello.answer)
    if rng.random() < 0.2:  # nobody has said a name
        said, reply = [], "nobody"
    else:
        reply = "recall"
    for turn in range(pick(rng, (0, 1, 2) if said else (1, 2))):
        said += small_talk(world, rng, language, f"{seed}/{turn}")
    return answer(writer, text, f"reply_follow.{reply}", said)


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


# Kinds that need what was said before.
LATER = {made.__name__: made for made in (follow_up, again, shorter, recall, own_story)}


def exchange(world, rng, kind, language, novelty, seed):
    """An exchange of any kind."""
    if kind in CONTEXTS:
        return ask_about(world, kind, language, seed)
    if kind in LATER:
        return LATER[kind](world, rng, language, novelty, seed)
    if kind == "translation":
        return translate(world, rng, language, novelty)
    if kind == "retold":
        return retold(world, rng, language, novelty, seed)
    return ask(world, draw(world, rng, kind, novelty), language, seed)


# ------------------------------------------------------------ conversations


def conversation(world, seed, split="train", kind=None):
    """The conversation of this seed: messages, kind, novelty, what the judge needs.

    split="test" asks what training never asks: `novelty` says whether the fact is
    known from other wordings ("new prompt") or not ("never asked"), or whether all that
    is needed stands in the conversation, which is a new one ("new context").
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
        told = "own_story" in kinds and rng.random() < TOLD
        if told:
            said, _ = told_story(world, rng, language, "trained", f"{seed}/told")
        if not (told and kind == "story"):  # two stories fill the context
            for turn in range(pick(rng, (0, 0, 1, 2))):
                said += small_talk(world, rng, language, f"{seed}/{turn}")
    last = exchange(world, rng, kind, language, novelty, seed)
    return {
        "conversations": said + last.earlier + messages(last.text, last.answer),
        "kind": kind,
        "novelty": "new context" if split == "test" and kind in IN_CONTEXT else novelty,
        **last.needs,
    }


def kinds_in_turn(world, split):
    """The kinds in the order in which a file of this split goes through them."""
    weights = WEIGHTS if split == "train" else {}
    kinds = world.dial["conversations"]
    rounds = range(max(weights.values(), default=1))
    return [kind for turn in rounds for kind in kinds if weights.get(kind, 1) > turn]


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
    r"""Is the reply right? Exactly: one of the answers, or a story that was asked for.

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
        and reply.endswith(tuple(example.get("ends", [""])))
    )
