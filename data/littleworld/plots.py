"""What is told: each function is a program that tells one kind of document.

Read `engine.py` first for `choose`, `tell` and `follow`; the sentences themselves are
in `lexicon.toml`, under the names that `tell` is given here.
"""

from littleworld.composed import composed
from littleworld.engine import number, numbers, sequence

# ------------------------------------------------------------------ stories


def ending(t, moral):
    """Most stories close with one more sentence."""
    t.tell(moral, "story.ending", chance=0.6)


def lost(t):
    """A toy is lost and found again."""
    t.tell("story.opening")
    t.tell("lost.owns")
    t.tell("lost.takes")
    t.tell("lost.loses")
    t.tell("lost.helper")
    t.tell("lost.finds")
    t.tell("story.thanks_friend")
    ending(t, "lost.moral")


def share(t):
    """The hero's trait decides whether a hungry friend gets something to eat."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.domains["count"] = numbers(4, 8)
    t.tell("share.has")
    t.tell("share.asks")
    shares = not t["trait"].knows("shares")
    if t.follow("behavior", "shares" if shares else "keeps", ["shares", "keeps"]) == (
        "shares"
    ):
        t.domains["part"] = numbers(2, t["count"].value - 2)
        t.tell("share.gives")
        t["rest"] = number(t["count"].value - t["part"].value)
        t.tell("share.now")
        t.tell("story.thanks_hero")
        ending(t, "share.moral")
    else:
        t.tell("share.refuses")
        t.tell("share.alone")
        t.tell("share.refusal_moral", chance=0.5)


def rescue(t):
    """The tool that the hero carries fits the trap that the friend is in."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.tell("rescue.tool")
    t.tell("rescue.trapped")
    t.tell("rescue.calls", chance=0.6)
    t.tell("rescue.comes")
    t.tell("rescue.saves")
    t.tell("story.thanks_hero")
    ending(t, "rescue.moral")


def gift(t):
    """A present in the color that the friend likes."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.tell("gift.wish")
    t.tell("gift.birthday")
    t.tell("gift.makes")
    t.tell("gift.gives")
    t.tell("gift.likes", chance=0.7)
    t.tell("story.thanks_hero")
    ending(t, "gift.moral")


def weather(t):
    """Who listens has the right thing along."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.tell("weather.trip")
    t.tell("weather.advice")
    if t.tell("weather.listens", "weather.forgets") == "weather.listens":
        t.tell("weather.fine")
    else:
        t.tell("weather.harm")
        t.tell("weather.brings")
    ending(t, "weather.moral")


def race(t):
    """Who rests does not win."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.tell("race.start")
    rests = t.tell("race.hero_rests", "race.friend_rests")
    hero, friend = t["hero"], t["friend"]
    t["winner"], t["loser"] = (
        (friend, hero) if rests == "race.hero_rests" else (hero, friend)
    )
    t.tell("race.wins")
    t.tell("race.praise")
    ending(t, "race.moral")


def swap(t):
    """Two things change hands, or do not."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.tell("swap.own")
    t.tell("swap.offer")
    swapped = t.tell("swap.agrees", "swap.declines") == "swap.agrees"
    hero, friend = t["hero"], t["friend"]
    t["keeper"], t["holder"] = (friend, hero) if swapped else (hero, friend)
    t.tell("swap.after")
    ending(t, "swap.moral")


def cook(t):
    """A dish needs its ingredient, and the ingredient its price."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.tell("cook.plan")
    t.tell("cook.lacks")
    t.tell("cook.asks")
    t.tell("cook.price")
    t.tell("cook.trade")
    t.tell("cook.eats")
    ending(t, "cook.moral")


def truth(t):
    """Something breaks, and somebody must say so."""
    t.tell("story.opening")
    t.tell("lost.owns")
    t.tell("story.friend")
    t.tell("truth.visit")
    t.tell("truth.breaks")
    if t.tell("truth.honest", "truth.lie") == "truth.honest":
        t.tell("truth.thanks")
    else:
        t.tell("truth.anger")
    t.tell("truth.mends")
    ending(t, "truth.moral")


def hobby(t):
    """What the hero loves in the second sentence helps in the last but one."""
    t.tell("story.opening")
    t.tell("hobby.loves")
    t.tell("hobby.friend")
    t.tell("hobby.tries")
    t.tell("hobby.shows")
    t.tell("hobby.works")
    t.tell("story.thanks_hero")
    ending(t, "hobby.moral")


def seek(t):
    """Who hides is found where he hid, not where the hero looked first."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.domains["count"] = numbers(5, 10)
    t.tell("seek.start")
    t.tell("seek.counts")
    t.tell("seek.misses", chance=0.7)
    t.tell("seek.finds")
    t.tell("seek.turns")
    ending(t, "seek.moral")


def plant(t):
    """A tree bears its fruit if it has water."""
    t.tell("story.opening")
    t.tell("story.friend")
    t.domains["count"] = numbers(4, 9)
    t.tell("plant.plants")
    if t.tell("plant.cares", "plant.forgets") == "plant.cares":
        t.tell("plant.grows")
        t.tell("plant.shares")
        t.tell("story.thanks_hero")
    else:
        t.tell("plant.dries")
        t.tell("plant.comforts")
    ending(t, "plant.moral")


WITH_TOY = ("lost", "gift", "truth")  # plots with one toy of a color
PLOTS = {
    plot.__name__: plot
    for plot in (
        *(lost, share, rescue, gift, weather, race),
        *(swap, cook, truth, hobby, seek, plant),
        composed,
    )
}


def story(t):
    names, weights = t.dial["plots"], None
    if more := t.dial.get("composed"):
        weights = [1] * len(names) + [more]
        names = [*names, "composed"]
    PLOTS[t.choose("plot", names, weights)](t)


def story_questions(t):
    """A story, and questions that only its reader can answer."""
    story(t)
    topics = [topic for topic in t.world.topics("ask_story") if answerable(t, topic)]
    for _ in range(t.dial["questions"]):
        t.line()
        topic = ask(t, *[f"ask_story.{topic}" for topic in topics])
        t.tell(f"reply_story.{topic}")
        topics.remove(topic)


def answerable(t, topic):
    """Does the story settle what the question and its answer say?"""
    return t.knows(f"ask_story.{topic}") and t.knows(f"reply_story.{topic}")


def ask(t, *groups):
    """Say 'Q:', a question of the groups and 'A:'; return its topic."""
    t.tell("marks.question")
    group = t.tell(*groups)
    work_out(t, group.split(".")[1])
    t.tell("marks.answer")
    return group.split(".")[1]


# -------------------------------------------------- facts, sums, counting


def facts(t):
    topic = t.choose("facts", ["animal", "opposite", "day"], [2, 1, 1])
    if topic == "animal":
        t.tell("facts.about")
        left = ["facts.says", "facts.eats", "facts.lives"]
        while left:
            left.remove(t.tell(*left))
    elif topic == "opposite":
        for _ in range(4):
            t.tell("facts.opposite")
    else:
        for _ in range(4):
            t.tell("facts.after", "facts.before")


def no_more_than_x(state):
    """What may be taken from x."""
    return numbers(0, state["x"].value)


def draw_sums(t, plus):
    largest = t.dial["largest"]
    t.domains["x"] = numbers(0, largest)
    t.domains["y"] = numbers(0, largest) if plus else no_more_than_x


def compute(t, plus):
    t["z"] = number(t["x"].value + (1 if plus else -1) * t["y"].value)


def sums(t):
    for _ in range(5):
        plus = t.choose("operation", [True, False])
        draw_sums(t, plus)
        t.tell("sums.plus" if plus else "sums.minus")
        compute(t, plus)
        t.tell("sums.result")


def draw_counts(t, up):
    """A range of 3 to 8 numbers; the slot that is said first is drawn first."""
    top = t.dial["count_to"]
    if up:
        t.domains["first"] = numbers(0, top - 2)
        t.domains["last"] = lambda state: numbers(
            state["first"].value + 2, min(top, state["first"].value + 7)
        )
    else:
        t.domains["last"] = numbers(2, top)
        t.domains["first"] = lambda state: numbers(
            max(0, state["last"].value - 7), state["last"].value - 2
        )


def count(t, up):
    values = range(t["first"].value, t["last"].value + 1)
    t["list"] = sequence(values if up else reversed(values))


def counting(t):
    for _ in range(3):
        up = t.choose("direction", [True, False])
        draw_counts(t, up)
        t.tell("counting.up" if up else "counting.down")
        count(t, up)
        t.tell("counting.list")


# ---------------------------------------------------------------- questions


def prepare(t, topic):
    """Settle from what the draws of a question come."""
    if topic in ("plus", "minus"):
        draw_sums(t, topic == "plus")
    elif topic in ("up", "down"):
        draw_counts(t, topic == "up")


def work_out(t, topic):
    """Settle what the answer says."""
    if topic in ("plus", "minus"):
        compute(t, topic == "plus")
    elif topic in ("up", "down"):
        count(t, topic == "up")


def questions(t):
    """Questions with nothing before them, as plain text."""
    for _ in range(4):
        topic = t.choose("topic", t.dial["topics"])
        prepare(t, topic)
        ask(t, f"ask.{topic}")
        t.tell(f"reply.{topic}")
        t.line()


# ------------------------------------------------------------ the larger dials


def town(t):
    """People whose house, pet, work and food are always the same."""
    t.tell("town.about")
    left = ["town.house", "town.pet", "town.job", "town.likes"]
    for _ in range(3):
        left.remove(t.tell(*left))


def stock(t):
    """How many are left after two changes."""
    t.domains["count"] = numbers(3, 8)
    t.tell("stock.has")
    left = t["count"].value
    for _ in range(2):
        more = t.choose("more", [True, False]) if left > 2 else True
        t.domains["change"] = numbers(1, 5 if more else left - 2)
        t.tell("stock.gets" if more else "stock.eats")
        left += t["change"].value * (1 if more else -1)
        t["rest"] = number(left)
        t.tell("stock.now")


def elsewhere(t, slot):
    """A domain: all places but the one that the slot holds."""
    places = t.world.words["place"]
    return lambda state: [place for place in places if place is not state[slot]]


def moves(t):
    """Two people and a toy; who has it, and where is it?"""
    t.tell("tracking.start")
    t["friend_place"] = t["hero_place"]
    for slot in ("hero_place", "friend_place"):
        t.domains[slot] = elsewhere(t, slot)
    takes = t.tell("tracking.hero_takes", "tracking.friend_takes")
    holds = "hero" if takes == "tracking.hero_takes" else "friend"
    for _ in range(t.choose("moves", t.dial["moves"])):
        t["holder"], t["other"] = t[holds], t["friend" if holds == "hero" else "hero"]
        options = ["tracking.hero_goes", "tracking.friend_goes"]
        if t["hero_place"] is t["friend_place"]:
            options.append("tracking.gives")
        if t.tell(*options) == "tracking.gives":
            holds = "friend" if holds == "hero" else "hero"
    t["holder"], t["where"] = t[holds], t[f"{holds}_place"]


def tracking(t):
    moves(t)
    t.line()
    for topic in ("who", "where"):
        ask(t, f"ask_tracking.{topic}")
        t.tell(f"reply_tracking.{topic}")
        t.line()


def both_ways(t, group, lines):
    """Say it in one language and then in the other."""
    for _ in range(lines):
        first, second = t.choose("direction", [("en", "zh"), ("zh", "en")])
        t.state = {}
        t.language = first
        t.tell(group)
        said, t.join = t.last, " "
        t.tell("translation.equals")
        t.join, t.language = " ", second
        t.retell(said)
        t.line()


def dictionary(t):
    both_ways(t, "translation.word", 5)


def translation(t):
    both_ways(t, "translation.sentence", 3)


def retold(t):
    """A whole story, and the same sentence by sentence in the other language."""
    t.language, other = t.choose("direction", [("en", "zh"), ("zh", "en")])
    t.record = []
    story(t)
    sentences, t.record = t.record, None
    t.line()
    t.tell("translation.again")
    t.line()
    t.language = other
    for template, t.state, chosen in sentences:
        t.retell(template, chosen)


DOCUMENTS = {
    program.__name__: program
    for program in (
        *(story, story_questions, facts, sums, counting, questions),
        *(town, stock, tracking, dictionary, translation, retold),
    )
}


def document(t):
    """Any document: first its kind, then its language, then the rest."""
    kinds, languages = t.dial["documents"], t.dial["languages"]
    t.kind = t.choose("document", list(kinds), list(kinds.values()))
    if t.kind not in ("dictionary", "translation", "retold"):
        t.language = t.choose("language", list(languages), list(languages.values()))
    DOCUMENTS[t.kind](t)
