"""Training and encoding 10 MB of natural text: our tokenizer beside others.

    python benchmarks/tokenizer.py            measure, print the table
    python benchmarks/tokenizer.py --save     and keep it for the chapter

The text is the sources and docstrings of the installed standard library, the pattern
and the vocabulary (4096) are the same for all. CPU seconds of one thread, the best of
some rounds taken in turn, since machines are never idle. Peers that are not installed
are left out.
"""

import argparse
import json
import os
import sysconfig
import time
import tracemalloc
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


def rust_trained(texts: list[str], vocab_size: int = VOCAB_SIZE) -> RustTokenizer:
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
    return rust


def merges_by_scan(pieces: dict[str, int], num_merges: int) -> list[str]:
    """As `learn_merges`, with a search for the most frequent pair and no heap."""
    index, found = PairIndex(pieces), []
    for i in range(num_merges):
        pair = min(index.pairs, key=lambda p: (-index.pairs[p], p))
        index.merge(pair, chr(256 + i))
        found.append(pair)
    return found


def merges_by_recount(pieces: dict[str, int], num_merges: int) -> list[str]:
    """Recount all different pieces after every merge."""
    index, found = PairIndex(pieces), []
    for i in range(num_merges):
        pairs = {}
        for word, count in zip(index.words, index.counts, strict=True):
            for at in range(len(word) - 1):
                pair = word[at : at + 2]
                pairs[pair] = pairs.get(pair, 0) + count
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        index.words = [word.replace(pair, chr(256 + i)) for word in index.words]
        found.append(pair)
    return found


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


def measure_training(texts: list[str], rounds: int) -> dict[str, float]:
    pieces = count_pieces(texts)
    merges = VOCAB_SIZE - 256 - len(SPECIAL_TOKENS)
    tasks = {
        "minillm": lambda: train_bpe(texts, VOCAB_SIZE),
        "  of which cutting and counting": lambda: count_pieces(texts),
        "tokenizers (Rust)": lambda: rust_trained(texts),
    }
    found = best_of(tasks, rounds)
    counting = found["  of which cutting and counting"]
    scan = best_of({"scan": lambda: merges_by_scan(pieces, merges)}, 1)["scan"]
    found["search instead of a heap"] = counting + scan
    few = best_of({"few": lambda: merges_by_recount(pieces, 20)}, 1)["few"]
    found["recount each time (extrapolated)"] = counting + few * merges / 20
    return found


def measure_encoding(texts: list[str], rounds: int) -> dict[str, float]:
    ours, pattern = train_bpe(texts, VOCAB_SIZE), regex.compile(PATTERN)
    text = json.dumps(ours.spec)
    warm, rust = Tokenizer(ours.spec), RustTokenizer.from_str(text)
    assert all(warm.encode(t) == rust.encode(t).ids for t in texts), "different ids"

    def without_cache():
        for piece in (p for t in part for p in pattern.findall(t)):
            cold.encoder.__missing__(piece)

    cold, part = Tokenizer(ours.spec, {}), texts[: len(texts) // 10]
    share = sum(map(len, part)) / sum(map(len, texts))
    fresh = [Tokenizer(ours.spec) for _ in range(rounds)]
    rusts = [RustTokenizer.from_str(text) for _ in range(rounds)]
    tasks = {
        "minillm, first time": lambda: fresh.pop().encode_batch(texts),
        "minillm, again": lambda: warm.encode_batch(texts),
        "tokenizers (Rust), first time": lambda r=rusts: encode_all(r.pop(), texts),
        "tokenizers (Rust), again": lambda: encode_all(rust, texts),
        "the regular expression alone": lambda: [pattern.findall(t) for t in texts],
    }
    tasks |= tiktoken_tasks(ours, texts)
    found = best_of(tasks, rounds)
    slow = best_of({"slow": without_cache}, 1)["slow"]
    return found | {"minillm without its cache (extrapolated)": slow / share}


def encode_all(rust: RustTokenizer, texts: list[str]) -> None:
    for text in texts:
        rust.encode(text)


def tiktoken_tasks(ours: Tokenizer, texts: list[str]) -> dict[str, Callable]:
    """The same vocabulary as a tiktoken encoding, if tiktoken is installed."""
    try:
        import tiktoken
    except ImportError:
        return {}
    special = len(ours.special_tokens)
    ordinary = range(special, ours.vocab_size)
    encoding = tiktoken.Encoding(
        name="minillm",
        pat_str=PATTERN,
        mergeable_ranks={ours.id_to_bytes(id): id - special for id in ordinary},
        special_tokens={},
    )
    sample = texts[0]
    ids = [id + special for id in encoding.encode_ordinary(sample)]
    assert ids == ours.encode(sample), "tiktoken gives different ids"
    return {"tiktoken (Rust)": lambda: [encoding.encode_ordinary(t) for t in texts]}


def measure_growth(texts: list[str]) -> dict[str, float]:
    """CPU seconds of training as the corpus and the vocabulary grow."""
    found = {}
    for part in (4, 2, 1):
        some = texts[::part]
        size = sum(len(text.encode()) for text in some) / 1e6
        name = f"{size:.1f} MB, vocabulary {VOCAB_SIZE}"
        found[name] = best_of({"": lambda s=some: train_bpe(s, VOCAB_SIZE)}, 2)[""]
    pieces = count_pieces(texts)
    for size in (1024, 4096, 16384):
        task = {"": lambda n=size: learn_merges(pieces, n - 259)}
        found[f"merges alone, vocabulary {size}"] = best_of(task, 2)[""]
    return found


def peak_memory(rounds: int) -> float:
    """Megabytes that training needs, for the 10 MB read `rounds` times over."""
    texts = (text for _ in range(rounds) for text in library_texts())
    tracemalloc.start()
    train_bpe(texts, VOCAB_SIZE)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return round(peak, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    texts = list(library_texts())
    size = sum(len(text.encode()) for text in texts)
    results = {
        "bytes": size,
        "pieces": len(count_pieces(texts)),
        "vocab_size": VOCAB_SIZE,
        "training": measure_training(texts, arguments.rounds),
        "encoding": measure_encoding(texts, arguments.rounds),
        "growth": measure_growth(texts),
        "memory": {"once": peak_memory(1), "ten times": peak_memory(10)},
    }
    print(f"{size / 1e6:.1f} MB, {results['pieces']:,} different pieces")
    for kind, base in (("training", "minillm"), ("encoding", "minillm, first time")):
        print(f"\n{kind:42} seconds   MB/s  times ours")
        for name, seconds in results[kind].items():
            ratio = seconds / results[kind][base]
            speed = size / 1e6 / seconds
            print(f"{name:42} {seconds:7.2f} {speed:6.1f} {ratio:11.2f}")
    print("\ngrowth of training, seconds")
    for name, seconds in results["growth"].items():
        print(f"{name:42} {seconds:7.2f}")
    print("\npeak memory of training, MB:", results["memory"])
    if arguments.save:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
