"""Training and encoding 10 MB of natural text: our tokenizer beside others.

    python benchmarks/tokenizer.py            measure, print the tables
    python benchmarks/tokenizer.py --save     and keep them for the chapter

The text is the sources and docstrings of the installed standard library; pattern and
vocabulary (4096) are the same for all. Seconds are CPU seconds of one thread, the least
of some rounds in which all take turns, since machines are never idle. What is marked
"extrapolated" would run for hours: its seconds per symbol are measured on a part of the
texts, and multiplied by the symbols that a whole run reads, which are counted exactly.
Peers come with `pip install -e .[benchmarks]`; where one is missing, its row says so.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import regex
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from minillm.tokenizer import (
    PATTERN,
    SPECIAL_TOKENS,
    PairIndex,
    Tokenizer,
    count_pieces,
    learn_merges,
    train_bpe,
)

VOCAB_SIZE = 4096
PEERS = ("tokenizers", "rustbpe", "tiktoken")
RESULTS = Path(__file__).with_suffix(".json")


def library_texts(megabytes: float = 10) -> Iterator[str]:
    """Files of the standard library, in order of name, up to a total size."""
    left = megabytes * 1e6
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        text = path.read_text("utf-8", errors="ignore")
        if (left := left - len(text.encode())) < 0:
            return
        yield text


def num_merges(vocab_size: int) -> int:
    return vocab_size - 256 - len(SPECIAL_TOKENS)


def installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


# ---- the peers


def train_tokenizers(texts: Iterator[str], vocab_size: int = VOCAB_SIZE) -> None:
    rust = RustTokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    rust.pre_tokenizer = pre_tokenizers.Sequence([split, letters])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(texts, trainer)


def train_rustbpe(texts: Iterator[str], vocab_size: int = VOCAB_SIZE) -> None:
    import rustbpe

    size = 256 + num_merges(vocab_size)
    rustbpe.Tokenizer().train_from_iterator(iter(texts), size, pattern=PATTERN)


def tiktoken_encoding(ours: Tokenizer):
    """The same vocabulary and pattern as a tiktoken encoding, ids included."""
    import tiktoken

    special = ours.special_tokens
    ordinary = set(range(ours.vocab_size)) - set(special.values())
    return tiktoken.Encoding(
        name="minillm",
        pat_str=PATTERN,
        mergeable_ranks={ours.id_to_bytes(id): id for id in ordinary},
        special_tokens=special,
    )


def replace_pair(ids: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`ids` with `new` in place of `pair`, as minbpe does it: by walking along."""
    out, at = [], 0
    while at < len(ids):
        if at + 1 < len(ids) and ids[at] == pair[0] and ids[at + 1] == pair[1]:
            out.append(new)
            at += 2
        else:
            out.append(ids[at])
            at += 1
    return out


def train_minbpe_style(texts: list[str], merges: int) -> None:
    """minbpe's algorithm: all pieces, not only the different ones, each time."""
    find = regex.compile(PATTERN).findall
    pieces = [list(piece.encode()) for text in texts for piece in find(text)]
    for new in range(256, 256 + merges):
        counts = {}
        for ids in pieces:
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=counts.get)
        pieces = [replace_pair(ids, best, new) for ids in pieces]


def minbpe_style_encoder(ours: Tokenizer) -> Callable[[str], list[int]]:
    """minbpe's algorithm with our merges: look for the best pair, walk, look again."""
    model = ours.spec["model"]
    vocab, pairs = model["vocab"], model["merges"]
    merges = {(vocab[a], vocab[b]): vocab[a + b] for a, b in pairs}
    first = {byte: ord(symbol) for byte, symbol in ours.encoder.letters.items()}
    find = regex.compile(PATTERN).findall

    def encode(text: str) -> list[int]:
        out = []
        for piece in find(text):
            ids = [first[byte] for byte in piece.encode()]
            while len(ids) > 1:
                found = zip(ids, ids[1:], strict=False)
                pair = min(found, key=lambda p: merges.get(p, math.inf))
                if pair not in merges:
                    break
                ids = replace_pair(ids, pair, merges[pair])
            out += ids
        return out

    return encode


# ---- the rungs of the chapter's ladder


def merges_by_scan(pieces: dict[str, int], merges: int) -> None:
    """As `learn_merges`, with a search for the most frequent pair and no heap."""
    index = PairIndex(pieces)
    for i in range(merges):
        pair = min(index.pairs, key=lambda p: (-index.pairs[p], p))
        index.merge(pair, chr(256 + i))


def merges_by_recount(pieces: dict[str, int], merges: int) -> None:
    """Recount all different pieces after every merge."""
    index = PairIndex(pieces)
    for i in range(merges):
        pairs = {}
        for word, count in zip(index.words, index.counts, strict=True):
            for at in range(len(word) - 1):
                pair = word[at : at + 2]
                pairs[pair] = pairs.get(pair, 0) + count
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        index.words = [word.replace(pair, chr(256 + i)) for word in index.words]


def symbols_read(pieces: dict[str, int], merges: list[tuple[int, int]]) -> int:
    """How many symbols a loop reads that goes over all `pieces` before each merge."""
    index, total = PairIndex(pieces), 0
    left = sum(n * len(piece.encode()) for piece, n in pieces.items())

    def size(places: set[int]) -> int:
        return sum(index.counts[at] * len(index.words[at]) for at in places)

    for i, (first, second) in enumerate(merges):
        pair = chr(first) + chr(second)
        places, total = set(index.places[pair]), total + left
        left -= size(places)
        index.merge(pair, chr(256 + i))
        left += size(places)
    return total


# ---- measuring


def best_of(tasks: dict[str, Callable], rounds: int) -> dict[str, float]:
    """The least CPU seconds of each task; the tasks take turns."""
    best = {}
    for _ in range(rounds):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            spent = time.process_time() - start
            best[name] = min(spent, best.get(name, spent))
    return best


def trainers_here() -> dict[str, Callable]:
    found = {"minillm": train_bpe, "tokenizers": train_tokenizers}
    return found | ({"rustbpe": train_rustbpe} if installed("rustbpe") else {})


def measure_training(texts: list[str], rounds: int) -> dict[str, float | None]:
    tasks = {
        name: lambda train=train: train(texts, VOCAB_SIZE)
        for name, train in trainers_here().items()
    }
    tasks["minillm: cutting and counting alone"] = lambda: count_pieces(texts)
    found = {"minillm": 0, "minillm: cutting and counting alone": 0, "tokenizers": 0}
    found |= {"rustbpe": None} | best_of(tasks, rounds)
    pieces, merges = count_pieces(texts), num_merges(VOCAB_SIZE)
    counting = found["minillm: cutting and counting alone"]
    scan = best_of({"": lambda: merges_by_scan(pieces, merges)}, 1)[""]
    found["minillm with a search in place of the heap"] = counting + scan
    return found | recount_seconds(texts, counting)


def recount_seconds(texts: list[str], counting: float) -> dict[str, float]:
    """What the two loops that recount everything would take, extrapolated."""
    pieces, few = count_pieces(texts), 15
    some = texts[::20]
    part = count_pieces(some)
    tasks = {
        "pieces": lambda: merges_by_recount(pieces, few),
        "minbpe": lambda: train_minbpe_style(some, few),
        "cutting": lambda: train_minbpe_style(some, 0),
    }
    spent, ones = best_of(tasks, 2), dict.fromkeys(pieces, 1)
    learned = learn_merges(pieces, num_merges(VOCAB_SIZE))
    rate = spent["pieces"] / symbols_read(ones, learned[:few])
    slow = spent["minbpe"] - spent["cutting"]
    slow /= symbols_read(part, learn_merges(part, few))
    return {
        "recount the different pieces (extrapolated)": counting
        + rate * symbols_read(ones, learned),
        "minbpe-style (extrapolated)": counting + slow * symbols_read(pieces, learned),
    }


def measure_encoding(texts: list[str], rounds: int) -> dict[str, float | None]:
    ours, find = train_bpe(texts, VOCAB_SIZE), regex.compile(PATTERN).findall
    spec = json.dumps(ours.spec)
    warm, rust = Tokenizer(ours.spec), RustTokenizer.from_str(spec)
    rust.encode_special_tokens = True
    ids = warm.encode_batch(texts)
    assert [e.ids for e in rust.encode_batch_fast(texts)] == ids, "tokenizers differs"
    fresh = [Tokenizer(ours.spec) for _ in range(rounds)]
    tasks = {
        "minillm, first time": lambda: fresh.pop().encode_batch(texts),
        "minillm, again": lambda: warm.encode_batch(texts),
        "tokenizers": lambda: [rust.encode(text) for text in texts],
        "tokenizers, without offsets": lambda: rust.encode_batch_fast(texts),
    }
    found = dict.fromkeys([*tasks, "tiktoken"])
    if installed("tiktoken"):
        encoding = tiktoken_encoding(ours)
        assert [encoding.encode_ordinary(t) for t in texts] == ids, "tiktoken differs"
        tasks["tiktoken"] = lambda: [encoding.encode_ordinary(t) for t in texts]
    tasks["the regular expression alone"] = lambda: [find(text) for text in texts]
    found |= best_of(tasks, rounds)

    part, minbpe = texts[::10], minbpe_style_encoder(ours)
    share = sum(map(len, part)) / sum(map(len, texts))
    assert [minbpe(text) for text in part] == ids[::10], "minbpe-style differs"
    cold = Tokenizer(ours.spec).encoder
    tasks = {
        "minillm without its cache": lambda: [
            cold.__missing__(piece) for text in part for piece in find(text)
        ],
        "minbpe-style": lambda: [minbpe(text) for text in part],
    }
    return found | {name: t / share for name, t in best_of(tasks, 2).items()}


def measure_growth(texts: list[str]) -> dict[str, dict[str, dict[str, float]]]:
    """CPU seconds of training as the corpus, and as the vocabulary grows."""
    found = {"corpus": {}, "vocabulary": {}}
    for part in (4, 2, 1):
        some = texts[::part]
        size = f"{sum(len(text.encode()) for text in some) / 1e6:.1f} MB"
        found["corpus"][size] = all_trained(some, VOCAB_SIZE)
    for size in (1024, 4096, 16384):
        found["vocabulary"][f"{size:,} tokens"] = all_trained(texts, size)
    return found


def all_trained(texts: list[str], vocab_size: int) -> dict[str, float]:
    tasks = {
        name: lambda train=train: train(texts, vocab_size)
        for name, train in trainers_here().items()
    }
    return best_of(tasks, 2)


# ---- memory


def peak() -> float:
    """The most memory that this process ever held, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone, not of the one that started it
        return int(regex.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1e3
    import resource

    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def print_memory(name: str, times: int) -> None:
    """Train `name` on the texts, read so many times from the disk; print its peak."""
    train, before = trainers_here()[name], peak()
    train((text for _ in range(times) for text in library_texts()), VOCAB_SIZE)
    print(peak() - before)


def measure_memory() -> dict[str, dict[str, float]]:
    """Peak memory of training in a process of its own, less what it began with."""
    found = {}
    for name in trainers_here():
        for times in (1, 10):
            command = [sys.executable, __file__, "--memory", name, f"--times={times}"]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            found.setdefault(name, {})[f"read {times}x"] = round(float(out.stdout), 1)
    return found


# ---- the tables


def print_tables(results: dict) -> None:
    size = results["bytes"] / 1e6
    print(f"{size:.1f} MB, {results['pieces']:,} different pieces")
    print("vocabulary", results["vocab_size"], results["versions"])
    for kind in ("training", "encoding"):
        base = next(iter(results[kind].values()))
        print(f"\n{kind:46} seconds   MB/s  times ours")
        for name, seconds in results[kind].items():
            if seconds is None:
                print(f"{name:46} not installed")
            else:
                speed, ratio = size / seconds, seconds / base
                print(f"{name:46} {seconds:7.2f} {speed:6.1f} {ratio:11.2f}")
    for kind in ("corpus", "vocabulary"):
        print(f"\nseconds of training as the {kind} grows")
        for setting, row in results["growth"][kind].items():
            print(f"{setting:>14}", *(f"{n} {s:6.2f} " for n, s in row.items()))
    print("\npeak memory of training, MB", results["memory"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--times", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        return print_memory(arguments.memory, arguments.times)
    texts = list(library_texts())
    results = {
        "bytes": sum(len(text.encode()) for text in texts),
        "pieces": len(count_pieces(texts)),
        "vocab_size": VOCAB_SIZE,
        "versions": {
            name: importlib.metadata.version(name) if installed(name) else None
            for name in PEERS
        },
        "training": measure_training(texts, arguments.rounds),
        "encoding": measure_encoding(texts, arguments.rounds),
        "growth": measure_growth(texts),
        "memory": measure_memory(),
    }
    print_tables(results)
    if arguments.save:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
