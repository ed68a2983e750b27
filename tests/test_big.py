"""The dial `big`: words made by rule, composed plots, a long tail, retold stories."""

import collections
import math
import random
import re

import pytest
from littleworld import World
from littleworld.composed import compositions
from littleworld.engine import Writer, add_probabilities, read
from littleworld.lexicon import load, load_dial, make_words
from littleworld.plots import document, story


@pytest.fixture(scope="module")
def world():
    return World("big")


class Spy(Writer):
    """A writer that notes which groups it said."""

    groups = ()

    def tell(self, *groups, chance=1.0):
        group = super().tell(*groups, chance=chance)
        self.groups = (*self.groups, group)
        return group


def composition(groups):
    """(asset, need, way) of a story's groups, or None; and whether it was kept."""
    said = collections.defaultdict(list)
    for group in filter(None, groups):
        section, name = group.split(".")
        said[section].append(name)
    if "has" not in said or "need" not in said:
        return None, None
    way = "pay" if "helper" in said else "comfort"
    return (said["has"][0], said["need"][-1], way), "keep" in said


def test_sixty_plots_are_composed_and_all_are_told(world):
    assert len(compositions()) == 60
    told = collections.Counter()
    for seed in range(4000):
        spy = Spy(world, random.Random(seed))
        story(spy)
        plot, kept = composition(spy.groups)
        if plot:
            told[plot] += 1
            assert kept == (spy["trait"].form("en") in ("greedy", "selfish"))
    assert set(told) == set(compositions())


def test_sizes(world):
    assert len(world.words["name"]) == 200 and len(world.words["person"]) == 500
    sums = World({**load_dial("big"), "documents": {"sums": 1}})
    results = re.findall(r"\d+", " ".join(sums.sample(s).text for s in range(200)))
    assert sum(len(result) == 2 for result in results) > len(results) / 2
    tracked = World({**load_dial("big"), "documents": {"tracking": 1}})
    moves = [tracked.sample(seed).text for seed in range(200)]
    moves = [len(re.findall(r"went|gave|去了|给了", text)) for text in moves]
    assert (min(moves), max(moves)) == (3, 6)


def test_words_made_by_rule_are_new_and_the_same_everywhere():
    more, words = load("big.toml"), load("lexicon.toml")["words"]
    rule = {**more["made"]["person"], "knows": {"pet": ["kind"]}}
    made = make_words("person", rule, words)
    assert made == make_words("person", rule, words) and len(made) == 500
    assert made[0]["word"][0].startswith("Mr") and len(made[0]["pet"]) == 2
    known = {entry["word"][0] for entry in words["name"]}
    names = make_words("name", more["made"]["name"], words)
    assert not known & {entry["word"][0] for entry in names}


def test_people_have_a_long_tail(world):
    town = World({**load_dial("big"), "documents": {"town": 1}, "languages": {"en": 1}})
    first, second, last = (town.words["person"][i].form("en") for i in (0, 1, -1))
    bits = [town.prefix_bits(f"{name} lives") for name in (first, second, last)]
    assert math.isclose(bits[1] - bits[0], 1)
    assert math.isclose(bits[2] - bits[0], math.log2(500))
    count = collections.Counter(
        re.match(r".+? \w+", town.sample(seed).text)[0] for seed in range(3000)
    )
    assert 0.12 < count[first] / 3000 < 0.18 and len(count) > 200


def test_what_may_follow_sums_up(world):
    town = World({**load_dial("big"), "documents": {"town": 1}, "languages": {"en": 1}})
    samples = [town.sample(seed).text for seed in range(400)]
    letters = sorted(set("".join(samples)))
    for text in samples[:3]:
        for prefix in (text[:4], text[:6], text[:9], text[:60]):
            ways = [2 ** -town.prefix_bits(prefix + letter) for letter in letters]
            total = math.fsum(ways) + 2 ** -town.score(prefix)
            assert math.isclose(total, 2 ** -town.prefix_bits(prefix))


def test_scores_are_exact(world):
    for sample in (world.sample(f"big/{seed}") for seed in range(60)):
        bits = [reader.bits for reader in read(document, world, sample.text)]
        assert any(math.isclose(b, sample.bits, abs_tol=1e-9) for b in bits)
        assert math.isclose(world.score(sample.text), add_probabilities(bits))
        assert world.check(sample.text).right


def story_with(world, *words):
    """A story that says all these words."""
    stories = (world.story(seed, language="en").text for seed in range(9999))
    return next(text for text in stories if all(word in text for word in words))


@pytest.mark.parametrize(
    "words, old, new, slot",
    [
        (("coins left", " brave "), " brave ", " greedy ", "behavior"),
        (("kept all the", " greedy "), " greedy ", " brave ", "behavior"),
        (("coins left",), r"Now (\w+) had \d+", r"Now \1 had 1", "number"),
        (("gave the rope",), "gave the rope", "gave the lamp", "tool"),
        (("with the mittens", "snowy"), "snowy", "rainy", "weather.gear"),
    ],
)
def test_a_cause_that_does_not_hold_is_found(world, words, old, new, slot):
    text = re.sub(old, new, story_with(world, *words), count=1)
    verdict = world.check(text)
    assert verdict.grammatical and not verdict.right
    assert slot in [fault.slot for fault in verdict.faults]


def test_a_story_is_retold_word_for_word():
    world = World({**load_dial("big"), "documents": {"retold": 1}})
    texts = [world.sample(seed).text for seed in range(40)]
    text = next(t for t in texts if t.isascii() is False and "In a quiet" in t)
    verdict = world.check(text)
    assert verdict.right and verdict.kind == "retold"
    for old, new, slot in (("安静的", "绿色的", "word"), ("quiet", "small", "word")):
        faults = world.check(text.replace(old, new)).faults
        assert [fault.slot for fault in faults] == [slot]
    story = text.split("\n")[0]
    plain = World({**world.dial, "documents": {"story": 1}, "languages": {"en": 1}})
    assert math.isclose(world.score(text), plain.score(story) + 1)  # + the direction
    for text in texts[:20]:
        assert world.check(text).right
        halves = text.split("\n")
        assert len(halves) == 3 and halves[0].isascii() != halves[2].isascii()
