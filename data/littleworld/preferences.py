"""Pairs of answers, one to be chosen and one to be rejected, and why.

Both answer the same conversation. The reason says what is wrong with the rejected one:

    wrong fact      the cat eats hay; 3 + 4 = 8; a zebra says moo (nobody knows)
    inconsistent    a story whose hero changes its name; a reply the story contradicts
    off-constraint  a right story, but not the one that was asked for
    rude            an insult before the answer, or instead of it
    too long        the answer, and then more that nobody asked for

The judge of the conversations accepts every chosen answer and refuses every rejected
one: so a pair is never a matter of taste.
"""

import random
import re

from littleworld import plots
from littleworld.conversations import (
    SHORT,
    ask,
    choose_language,
    choose_novelty,
    conversation,
    draw,
    judge,
    messages,
    pick,
)
from littleworld.engine import Item, Writer, number, read, sequence
from littleworld.lexicon import load

REASONS = ("wrong fact", "inconsistent", "off-constraint", "rude", "too long")
FACTS = ("fact", "opposite", "day", "sum", "counting", "town", "unknown")
GUESSES = ("says", "eats", "lives")  # what the first wordings of "unknown" ask
MORE = ("fact", "opposite", "day")  # what somebody who talks too much goes on about


def preference(world, seed, split="train", reason=None):
    """The pair of this seed: {"chosen", "rejected", "reason", "kind", ...}.

    Both are whole conversations that differ in the last message. The other fields are
    those of the conversation, so that `judge(pair, reply)` works.
    """
    rng = random.Random(f"preference/{split}/{seed}")
    reason = reason or pick(rng, REASONS)
    if reason not in REASONS:
        raise ValueError(f"no reason {reason!r}; there are {', '.join(REASONS)}")
    make = globals()[reason.replace(" ", "_").replace("-", "_")]
    row, wrong = make(world, rng, f"preference/{seed}", split)
    chosen = row.pop("conversations")
    rejected = [*chosen[:-1], {"role": "assistant", "content": wrong}]
    return {"chosen": chosen, "rejected": rejected, "reason": reason, **row}


def some_conversation(world, rng, seed, split, kinds):
    """A conversation of one of the kinds, its answer, and the language of that."""
    kinds = [kind for kind in world.dial["conversations"] if kind in kinds]
    row = conversation(world, seed, split, pick(rng, kinds))
    answer = row["conversations"][-1]["content"]
    return row, answer, "en" if answer.isascii() else "zh"


# --------------------------------------------------------------- wrong facts


def wrong_fact(world, rng, seed, split):
    """A question, and an answer in the right form with the wrong thing in it."""
    kind = pick(rng, [kind for kind in FACTS if kind in world.dial["conversations"]])
    novelty, language = choose_novelty(rng, split, kind), choose_language(world, rng)
    question = draw(world, rng, kind, novelty)
    while question.topic == "stranger":  # of whom nothing could be said wrongly
        question = draw(world, rng, kind, novelty)
    exchange = ask(world, question, language, seed)
    row = {"conversations": messages(exchange.text, exchange.answer)}
    row |= {"kind": kind, "novelty": novelty, **exchange.needs}
    while True:
        wrong = wrong_answer(world, rng, question, language)
        if not judge(row, wrong):
            return row, wrong


def wrong_answer(world, rng, question, language):
    """The reply to a question, with something else where the fact belongs."""
    writer = Writer(world, rng)
    writer.language, writer.state = language, dict(question.slots)
    topic = question.topic
    if question.kind == "unknown":
        asked = question.wording
        topic = GUESSES[asked] if asked < len(GUESSES) else pick(rng, GUESSES)
        known = pick(rng, world.words["kind"])
        writer["kind"] = mix(known, next(iter(question.slots.values())))
    plots.work_out(writer, topic)
    if question.kind == "sum":
        writer["z"] = number(abs(writer["z"].value + pick(rng, (-2, -1, 1, 2, 10))))
    elif question.kind == "counting":
        spoil(writer, rng)
    elif question.kind != "unknown":
        ((slot, item),) = question.slots.items()
        writer[slot] = mix(pick(rng, world.words[item.cls]), item)
    writer.tell(f"reply.{topic}")
    return writer.text


def mix(other, item):
    """The item, but with what is known of the other: a cat that eats hay."""
    own = {"word", "he", "him", "his", "He", "measure"}
    forms = {key: text for key, text in other.forms.items() if key[1] not in own}
    kept = {key: text for key, text in item.forms.items() if key[1] in own}
    return Item(other.cls, forms | kept)


def spoil(writer, rng):
    """One number is left out of what is counted, or said twice."""
    values = writer["list"].form("en").split()
    place = int(rng.random() * len(values))
    values[place : place + 1] = pick(rng, ([], [values[place]] * 2))
    writer["list"] = sequence(values)


# -------------------------------------------------------------- inconsistent


def inconsistent(world, rng, seed, split):
    """A story that contradicts itself, or an answer that contradicts the story."""
    kinds = ("story", "story_question", "tracking")
    row, answer, language = some_conversation(world, rng, seed, split, kinds)
    if row["kind"] == "story":
        return row, contradict(world, rng, answer, language)
    while True:
        wrong = exchange_word(world, rng, answer, language)
        if not judge(row, wrong):
            return row, wrong


def contradict(world, rng, story, language):
    """The story with another word where an earlier sentence has settled it."""
    steps = [
        step
        for step in read(plots.document, world, story)[0].trace
        if not step.first and step.label in world.words and step.length
    ]
    while True:
        step = pick(rng, steps)
        end = step.position + step.length
        old = story[step.position : end]
        options = [i.form(language) for i in world.words[step.label]]
        if old in options:  # and not in a form such as "a fox"
            word = pick(rng, [word for word in options if word != old])
            wrong = story[: step.position] + word + story[end:]
            if not world.check(wrong).right:
                return wrong


def exchange_word(world, rng, answer, language):
    """The answer with another word or number in the place of its last one."""
    if found := re.search(r"\d+", answer):
        other = str(int(found[0]) + pick(rng, (1, 2)))
        return answer[: found.start()] + other + answer[found.end() :]
    places = []
    for cls in world.words:
        for match in world.pattern(cls, language, "word").finditer(answer):
            if language == "zh" or re.search(r"(^|\W)$", answer[: match.start()]):
                places.append((match.end(), match.start(), cls))
    end, start, cls = max(places)
    items = [item.form(language) for item in world.words[cls]]
    other = pick(rng, [word for word in items if word != answer[start:end]])
    return answer[:start] + other + answer[end:]


# ------------------------------------------------------- the other three ways


def off_constraint(world, rng, seed, split):
    """A right story of another animal, name, toy or ending than was asked for."""
    row, answer, language = some_conversation(world, rng, seed, split, ("story",))
    wanted = {
        slot: world.find(CLASSES.get(slot, slot), "en", "word", word)
        for slot, word in row["story"].items()
    }
    missed = pick(rng, [*wanted, *(["ending"] if "ends" in row else [])])
    forced = {slot: item for slot, item in wanted.items() if slot != missed}
    for turn in range(1000):
        wrong = world.story(f"{seed}/off/{turn}", forced, language).text
        if not judge(row, wrong):
            return row, wrong
    raise RuntimeError(f"1000 stories fit the request of {seed!r}")


CLASSES = {"hero": "name"}  # a slot of a request, and the class of its word


def rude(world, rng, seed, split):
    """The right answer after an insult, or the insult alone."""
    kinds = (*SHORT, "story_question", "tracking", "again", "follow_up")
    row, answer, language = some_conversation(world, rng, seed, split, kinds)
    line = pick(rng, load("preferences.toml")["rude"])[language == "zh"]
    space = " " if language == "en" else ""
    return row, pick(rng, (line, f"{line}{space}{answer}"))


def too_long(world, rng, seed, split):
    """The right answer, and then answers to questions that nobody asked."""
    kinds = (*SHORT, "story_question", "tracking", "again", "follow_up")
    row, answer, language = some_conversation(world, rng, seed, split, kinds)
    space = " " if language == "en" else ""
    said = [answer]
    for turn in range(pick(rng, (2, 3, 4))):
        kind = pick(rng, [k for k in MORE if k in world.dial["conversations"]])
        other = ask(world, draw(world, rng, kind), language, f"{seed}/{turn}")
        said.append(other.answer)
    return row, space.join(said)
