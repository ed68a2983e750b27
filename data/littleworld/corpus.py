"""The corpus on disk: documents and conversations, made from a seed."""

import bz2
import collections
import hashlib
import json
import lzma
import os
import zlib
from pathlib import Path

from littleworld.conversations import kinds_in_turn
from littleworld.preferences import REASONS, preference
from littleworld.world import World

# A seed names its split, so that no validation document shares one with training.
SEED = "{seed}/{split}/{index}"


def document_rows(world, split, seed, count, exact=False):
    """Rows {"text", "kind", "bits"}; `exact` bits count every derivation."""
    for index in range(count):
        document = world.sample(SEED.format(seed=seed, split=split, index=index))
        bits = world.score(document.text) if exact else document.bits
        yield {"text": document.text, "kind": document.kind, "bits": round(bits, 6)}


def conversation_rows(world, split, seed, count):
    """Rows {"conversations", "kind", ...}, the kinds in turn."""
    kinds = kinds_in_turn(world, split)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        yield world.conversation(f"{seed}/{index}", split, kind)


def preference_rows(world, split, seed, count):
    """Rows {"chosen", "rejected", "reason", ...}, the reasons in turn."""
    for index in range(count):
        reason = REASONS[index % len(REASONS)]
        yield preference(world, f"{seed}/{index}", split, reason)


def write_rows(rows, path):
    """Write JSON lines, all or none; return the rows written and a checksum."""
    temporary = path.with_name(path.name + ".tmp")
    digest, count, size, bits = hashlib.sha256(), 0, 0, 0.0
    with open(temporary, "wb") as file:
        for row in rows:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            file.write(line)
            count += 1
            size += len(row.get("text", "").encode())
            bits += row.get("bits", 0.0)
    os.replace(temporary, path)
    about = {"rows": count, "sha256": digest.hexdigest()}
    if size:
        about |= {"bytes": size, "bits_per_byte": round(bits / size, 6)}
    return about


def write_corpus(
    folder,
    documents=80_000,
    conversations=12_000,
    validation=500,
    per_kind=40,
    dial="small",
    seed=0,
    preferences=None,
):
    """Write documents, conversations and pairs as .jsonl files, and about.json.

    The same arguments give the same bytes on every machine. Returns what about.json
    holds: sizes, checksums, and the floor in bits per byte of validation.jsonl. There
    is a pair for every six conversations, unless `preferences` says how many.
    """
    folder, world = Path(folder), World(dial)
    folder.mkdir(parents=True, exist_ok=True)
    tests = per_kind * len(world.dial["conversations"])
    pairs = conversations // 6 if preferences is None else preferences
    rows = {
        "train": document_rows(world, "train", seed, documents),
        "validation": document_rows(world, "validation", seed, validation, exact=True),
        "sft_train": conversation_rows(world, "train", seed, conversations),
        "sft_test": conversation_rows(world, "test", seed, tests),
        "preferences_train": preference_rows(world, "train", seed, pairs),
        "preferences_test": preference_rows(world, "test", seed, min(pairs, 200)),
    }
    files = {
        f"{name}.jsonl": write_rows(rows, folder / f"{name}.jsonl")
        for name, rows in rows.items()
    }
    about = {"dial": world.dial_name, "seed": seed, "files": files}
    if validation:
        about["floor_bits_per_byte"] = files["validation.jsonl"]["bits_per_byte"]
    temporary = folder / "about.json.tmp"
    temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / "about.json")
    return about


COMPRESSORS = {
    "zlib": lambda data: zlib.compress(data, 9),
    "bz2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9),
}


def figures(dial="small", documents=4000, seed=0):
    """What a dial's documents weigh: bytes and bits by kind, and what packers need.

    Returns {"kinds": {kind: (documents, bytes, bits)}, "packed": {name: bits per
    byte}}; the packers see all the documents at once, one to a line.
    """
    world, kinds, texts = World(dial), collections.defaultdict(list), []
    for row in document_rows(world, "train", seed, documents):
        size = len(row["text"].encode())
        kinds[row["kind"]].append((1, size, row["bits"]))
        texts.append(row["text"])
    data = "\n".join(texts).encode()
    return {
        "kinds": {
            kind: tuple(map(sum, zip(*rows, strict=True)))
            for kind, rows in kinds.items()
        },
        "packed": {
            name: 8 * len(pack(data)) / len(data) for name, pack in COMPRESSORS.items()
        },
    }
