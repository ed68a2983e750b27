"""What is in a corpus of text, and the lowest loss that any model can reach on it."""

# Generated from notebooks/01_data.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "entropy", "compress", "bits_per_byte", "summarize", "NearDuplicates",
    "deduplicate", "diversity", "held_out", "sample_texts",
]  # fmt: skip

# %%
import bz2
import hashlib
import lzma
import math
import re
import statistics
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise


# %%
def entropy(counts: Iterable[int]) -> float:
    """Shannon entropy, in bits, of the distribution that `counts` describe."""
    counts = [count for count in counts if count]
    total = sum(counts)
    return math.log2(total) - sum(n * math.log2(n) for n in counts) / total


def compress(texts: Iterable[str]) -> dict[str, float]:
    """Bits per byte of a corpus, by byte counts, by pairs, and by three compressors.

    `order-0` and `bigram` count on the text itself and store no table: lower bounds of
    what such a model takes. zlib, bz2 and xz are real files, everything included.
    """
    data = "\n".join(texts).encode("utf-8")
    if len(data) < 2:
        raise ValueError("there is no text to compress")
    pairs = entropy(Counter(pairwise(data)).values())
    packers = {"zlib": zlib.compress, "bz2": bz2.compress, "xz": lzma.compress}
    sizes = {name: 8 * len(pack(data)) / len(data) for name, pack in packers.items()}
    counted = {"order-0": entropy(Counter(data).values())}
    counted["bigram"] = pairs - entropy(Counter(data[:-1]).values())  # given the first
    return counted | sizes


# %%
def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Total loss in nats over total UTF-8 bytes of the text -> bits per byte."""
    if num_bytes <= 0:
        raise ValueError(f"{num_bytes=}: there is no text to divide by")
    return nats / math.log(2) / num_bytes


# %%
HAN = re.compile("[\u4e00-\u9fff]")
WORD = re.compile(r"[\u4e00-\u9fff]|\w+")  # Chinese is cut into its characters


# %%
def summarize(texts: Iterable[str]) -> dict:
    """Count what a corpus holds: documents, bytes, lengths, words, duplicates."""
    seen, words, characters, sizes = Counter(), Counter(), Counter(), []
    for text in texts:
        seen[hash(text)] += 1
        words.update(text.split())
        characters.update(text)
        sizes.append(len(text.encode("utf-8")))
    if not sizes:
        raise ValueError("there are no documents to summarize")
    return {
        "documents": len(sizes),
        "bytes": sum(sizes),
        "characters": characters.total(),
        "distinct_characters": len(characters),
        "shortest": min(sizes),
        "median": int(statistics.median(sizes)),
        "longest": max(sizes),
        "words": sum(words.values()),
        "distinct_words": len(words),
        "duplicates": len(sizes) - len(seen),
        "han_share": sum(n for c, n in characters.items() if HAN.match(c))
        / max(characters.total(), 1),
        "frequent": [word for word, _ in words.most_common(10)],
        "rare": [word for word, _ in words.most_common()[:-11:-1]],
    }


# %%
class NearDuplicates:
    """Finds texts that are nearly the same as an earlier one, among very many.

    Two texts are as alike as their sets of runs of three words overlap. MinHash
    estimates this from 128 numbers a text (Broder 1997; the library is `datasketch`).
    """

    def __init__(self, likeness: float = 0.8):
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            reason = "near duplicates need a library: pip install datasketch"
            raise ValueError(reason) from None
        self.sketch, self.index = MinHash, MinHashLSH(threshold=likeness, num_perm=128)
        self.likeness, self.known, self.count = likeness, {}, 0

    def find(self, text: str) -> tuple[int, float] | None:
        """The number of an earlier text that this one repeats, and the likeness."""
        words = WORD.findall(text)
        runs = (" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2)))
        sketch = self.sketch(num_perm=128)
        sketch.update_batch([run.encode("utf-8") for run in set(runs)])
        near = [(sketch.jaccard(self.known[i]), -i) for i in self.index.query(sketch)]
        likeness, number = max(near, default=(0.0, 0))
        self.count += 1
        if likeness >= self.likeness:
            return -number, likeness
        self.known[self.count - 1] = sketch
        self.index.insert(self.count - 1, sketch)
        return None


# %%
def deduplicate(texts: Iterable[str], likeness: float | None = None) -> Iterator[str]:
    """Yield every text the first time it occurs; only a digest of each is kept.

    With a `likeness` below 1, texts that are as like an earlier one are left out too.
    """
    seen, near = set(), None if likeness is None else NearDuplicates(likeness)
    for text in texts:
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            if near is None or near.find(text) is None:
                yield text


def diversity(texts: list[str]) -> dict[str, float]:
    """How varied a batch of texts is: 1 is as varied as can be, 0 says one thing only.

    The share of distinct texts and of distinct runs of 1, 2 and 3 words; and the bytes
    after zlib for each byte before.
    """
    if not texts:
        raise ValueError("there are no texts to compare")
    found = {"texts": len(set(texts)) / len(texts)}
    for width in (1, 2, 3):
        runs = [
            tuple(words[i : i + width])
            for words in map(WORD.findall, texts)
            for i in range(len(words) - width + 1)
        ]
        found[f"runs of {width}"] = len(set(runs)) / max(1, len(runs))
    data = "\n".join(texts).encode("utf-8")
    return found | {"packed": len(zlib.compress(data)) / max(1, len(data))}


# %%
def held_out(text: str, share: float = 0.01, salt: str = "") -> bool:
    """Whether a text belongs to the validation split: its own digest decides.

    So all copies of a text are on one side, on any machine and in any order.
    """
    digest = hashlib.blake2b((salt + text).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


# %%
SAMPLE = 32_000_000  # bytes of text that are looked at closely


# %%
def sample_texts(texts: Iterable[str]) -> tuple[list[str], int, int]:
    """Texts of at most `SAMPLE` bytes, and how many texts and bytes there were in all.

    All, or else a share by their digests: all copies of a text, or none of them.
    """
    kept, held, share, count, total = [], 0, 1.0, 0, 0
    for text in texts:
        size = len(text.encode("utf-8"))
        count, total = count + 1, total + size
        if held_out(text, share):
            kept.append(text)
            held += size
        if held > SAMPLE and len(kept) > 1:
            share /= 2
            half = [text for text in kept if held_out(text, share)]
            kept = half or kept[: len(kept) // 2]  # these were all the same
            held = sum(len(text.encode("utf-8")) for text in kept)
    return kept, count, total
