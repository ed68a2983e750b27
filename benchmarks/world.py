"""Little World in figures: floors, packers, speed and what the checker notices.

    python benchmarks/world.py            # all dials; keeps benchmarks/world.json
    python benchmarks/world.py small big  # these, and the others as they were

Times are CPU seconds of one core: they say how the dials compare, on any one machine.
"""

import json
import math
import random
import sys
import time
from pathlib import Path

from littleworld import World
from littleworld.corpus import figures
from littleworld.lexicon import load
from littleworld.mutations import MUTATIONS

STORE = Path(__file__).with_suffix(".json")


def measure(dial, documents=4000, scored=400):
    """Everything about one dial."""
    found = figures(dial, documents)
    count, size, bits = map(sum, zip(*found["kinds"].values(), strict=True))
    world = World(dial)
    seconds, samples = cpu(lambda: [world.sample(f"speed/{i}") for i in range(2000)])
    scoring, _ = cpu(lambda: [world.score(each.text) for each in samples[:scored]])
    return {
        "documents": count,
        "bytes_per_document": round(size / count, 1),
        "bits_per_document": round(bits / count, 2),
        "floor": round(bits / size, 4),
        "kinds": {
            kind: {
                "share": round(n / count, 3),
                "bytes": round(s / n, 1),
                "bits": round(b / n, 2),
                "floor": round(b / s, 4),
            }
            for kind, (n, s, b) in sorted(found["kinds"].items())
        },
        "packed": {name: round(value, 4) for name, value in found["packed"].items()},
        "documents_per_second": round(len(samples) / seconds),
        "milliseconds_to_score": round(1000 * scoring / scored, 2),
        "caught": {each.__name__: caught(world, each) for each in MUTATIONS},
    }


def cpu(function):
    """CPU seconds that a call takes, and its result."""
    begin = time.process_time()
    result = function()
    return time.process_time() - begin, result


def caught(world, mutation, wanted=200):
    """The share of spoilt documents that the checker does not call right."""
    rng, right, total = random.Random(0), 0, 0
    for seed in range(4000):
        document = world.sample(f"mutate/{seed}")
        text = mutation(world, document, rng)
        if text is not None and text != document.text:
            total += 1
            right += world.score(text) < math.inf  # that is what `check` calls right
        if total == wanted:
            break
    return round(1 - right / total, 4) if total else None


def show(results):
    """The tables, in Markdown."""
    print("| dial | bytes | bits | floor | documents/s | ms to score |", end=" ")
    names = list(next(iter(results.values()))["packed"])
    print(" | ".join(names) + " |\n" + "|--" * (6 + len(names)) + "|")
    for dial, found in results.items():
        speed = found["documents_per_second"], found["milliseconds_to_score"]
        means = found["bytes_per_document"], found["bits_per_document"], found["floor"]
        cells = [dial, *means, *speed, *found["packed"].values()]
        print("| " + " | ".join(map(str, cells)) + " |")
    print("\n| floor in bits per byte | " + " | ".join(results) + " |")
    print("|--" * (len(results) + 1) + "|")
    for kind in dict.fromkeys(k for found in results.values() for k in found["kinds"]):
        cells = (found["kinds"].get(kind) for found in results.values())
        floors = [f"{cell['floor']:.3f}" if cell else "" for cell in cells]
        print(f"| {kind} | " + " | ".join(floors) + " |")
    print("\n| caught | " + " | ".join(results) + " |")
    print("|--" * (len(results) + 1) + "|")
    for each in MUTATIONS:
        rates = [found["caught"][each.__name__] for found in results.values()]
        shown = [f"{rate:.1%}" if rate is not None else "" for rate in rates]
        print(f"| {each.__name__.replace('_', ' ')} | " + " | ".join(shown) + " |")


def main():
    dials = list(load("dials.toml"))
    found = json.loads(STORE.read_text()) if STORE.exists() else {}
    found |= {dial: measure(dial) for dial in sys.argv[1:] or dials}
    found = {dial: found[dial] for dial in dials if dial in found}
    show(found)
    STORE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
