"""Stories by composition: what the hero has x what a friend needs x what is done.

`big` tells these 60 plots beside the twelve of `plots.py`. A combination is told only
if its cause holds: who has the rope needs no helper with a rope, and coins cure nobody
who is lost. What the hero has in the second sentence is what the story turns on at the
end, and whether a greedy hero parts with it is settled in the first.
"""

from littleworld.engine import number, numbers

ASSETS = ("tool", "toy", "food", "coins", "hobby")
OWNED = ("lost", "broken")  # needs that begin with a thing of the friend's
HELPED = (*OWNED, "stuck", "way", "ill", "weather", "birthday", "hungry", "lesson")
GIVEN = (*OWNED, "lonely", "ill")  # a present helps these without a helper


def ways(asset, need):
    """What a hero with this asset can do about this need."""
    helped = need in HELPED and (asset, need) != ("tool", "stuck")
    given = need in GIVEN and asset != "tool"
    return ["pay"] * helped + ["comfort"] * given


def compositions():
    """Every (asset, need, way) that is told."""
    needs = dict.fromkeys(HELPED + GIVEN)
    return [(a, n, way) for a in ASSETS for n in needs for way in ways(a, n)]


def said(t, section, names):
    """Say one of the section's groups; return which."""
    return t.tell(*[f"{section}.{name}" for name in names]).split(".")[1]


def composed(t):
    t.tell("story.opening")
    t.domains["count"] = numbers(4, 20)
    t.domains["coins"] = numbers(10, 99)
    asset = said(t, "has", ASSETS)
    t.tell("story.friend")
    need = strike(t, asset)
    way = t.choose("way", ways(asset, need))
    if way == "pay":
        t.tell(f"helper.{need}")
        split(t, asset)
        t.tell(f"price.{asset}")
    shares = "keeps" if t["trait"].knows("shares") else "shares"
    if t.follow("behavior", shares, ["shares", "keeps"]) == "keeps":
        t.tell(f"keep.{asset}")
        if asset == "toy":
            t["keeper"] = t["hero"]
        t.tell("keep.sad")
        t.tell("share.refusal_moral", chance=0.5)
        return
    if way == "comfort":
        split(t, asset)
    part_with(t, asset, way)
    t.tell(f"got.{need}" if way == "pay" else f"glad.{need}")
    t.tell("story.thanks_hero")
    t.tell(f"{way}.moral", "story.ending", chance=0.6)


def strike(t, asset):
    """Something happens to the friend; return what it is."""
    needs = [n for n in dict.fromkeys(HELPED + GIVEN) if ways(asset, n)]
    first = ["owns"] + [n for n in needs if n not in OWNED]
    need = said(t, "need", first)
    return said(t, "need", OWNED) if need == "owns" else need


def split(t, asset):
    """From what the part that is given away is drawn: some stays."""
    if asset == "food":
        t.domains["part"] = numbers(2, t["count"].value - 2)
    if asset == "coins":
        t.domains["price"] = numbers(2, t["coins"].value - 2)


def part_with(t, asset, way):
    """The hero gives away what is needed; things change owner, what is left adds up."""
    t.tell(f"{way}.{asset}")
    if asset == "toy":
        t["keeper"] = t["helper" if way == "pay" else "friend"]
    if asset == "food":
        t["rest"] = number(t["count"].value - t["part"].value)
        t.tell("left.food")
    if asset == "coins":
        t["left"] = number(t["coins"].value - t["price"].value)
        t.tell("left.coins")
