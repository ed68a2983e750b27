"""Text to integers and back without loss: byte-pair encoding, built by hand."""

# Generated from notebooks/02_tokenizer.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "PATTERN", "SPECIAL_TOKENS", "compile_pattern", "count_pieces", "PairIndex",
    "learn_merges", "Encoder", "Tokenizer", "train_bpe", "load_tokenizer",
]  # fmt: skip

# %%
import codecs
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain
from operator import add
from pathlib import Path

import regex

from minillm.support.files import read_json, write_json
from minillm.support.token_files import progress_bar
from minillm.support.tokenizers import BaseTokenizer, adapt, pattern_of, read_config

logger = logging.getLogger(__name__)


# %%
def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each of the 256 bytes, in the order of their ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in LETTERS.items()}
ORDER = {byte: number for number, byte in enumerate(LETTERS)}


def to_symbols(text: str) -> tuple[int, ...]:
    """The bytes of `text` by their numbers in `ORDER`."""
    return tuple(ORDER[byte] for byte in text.encode())


# %%
PATTERN = (
    r"'(?:[sdmtSDMT]|[lL]{2}|[rRvV][eE])"  # 's 'd 'm 't 'll 're 've
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the space or sign before it
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends; spaces, but for the last; spaces
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def compile_pattern(pattern: str) -> regex.Pattern:
    """`pattern` compiled so that its pieces, joined, are always the whole text.

    What it would skip is a piece too. ValueError for groups and set operations.
    """
    if "&&" in pattern or regex.compile(pattern).groups:
        raise ValueError(f"set operations and groups are not supported: {pattern!r}")
    return regex.compile(f"{pattern}|(?s:.+?)(?={pattern}|\\Z)")


# %%
def count_pieces(
    texts: Iterable[str],
    pattern: str = PATTERN,
    max_pieces: int = 2_000_000,
    progress: bool = False,
) -> Counter[str]:
    """How often each piece that `pattern` cuts occurs in `texts`, read once.

    Memory is bounded: with more than `max_pieces` different pieces, the rarest are
    forgotten until half of that are left, and the log says so.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of str, such as [text]")
    find = compile_pattern(pattern)
    pieces = Counter()
    forgotten = 0
    for text in progress_bar(progress, "pieces", iterable=texts):
        if len(text) < 1_000_000:
            pieces.update(find.findall(text))
        else:  # one at a time, so that a huge text needs no list of its own
            pieces.update(match[0] for match in find.finditer(text))
        if len(pieces) > max_pieces:
            while len(pieces) > max_pieces // 2:
                forgotten += 1
                pieces = Counter({p: n for p, n in pieces.items() if n > forgotten})
    if forgotten:
        logger.warning("pieces seen %d times or less were forgotten", forgotten)
    return pieces


# %%
class PairIndex:
    """Words as strings of symbols; how often each pair occurs in them, and where."""

    def __init__(self, pieces: Mapping[str, int]) -> None:
        self.words = ["".join(map(chr, to_symbols(piece))) for piece in pieces]
        self.counts = list(pieces.values())
        self.pairs, self.places = defaultdict(int), defaultdict(list)
        for number, word in enumerate(self.words):
            for pair in map(add, word, word[1:]):
                self.pairs[pair] += self.counts[number]
                self.places[pair].append(number)

    def merge(self, pair: str, symbol: str) -> set[str]:
        """Replace `pair` by `symbol` in every word; returns the pairs this makes."""
        new = []
        for number in set(self.places.pop(pair)):
            parts = self.words[number].split(pair)
            self.words[number] = symbol.join(parts)
            times, left = self.counts[number], parts[0][-1:]
            for part in parts[1:]:  # one replaced pair, between `left` and `part`
                if left:
                    gone = pair[1] if left == symbol else left
                    self.pairs[gone + pair[0]] -= times
                    new.append((left + symbol, number))
                if part:
                    self.pairs[pair[1] + part[0]] -= times
                    new.append((symbol + part[0], number))
                left = part[-1:] or symbol
        for made, number in new:
            self.pairs[made] += self.counts[number]
            self.places[made].append(number)
        del self.pairs[pair]
        return {made for made, _ in new}


# %%
def learn_merges(
    pieces: Mapping[str, int],
    num_merges: int,
    min_frequency: int = 2,
    progress: bool = False,
) -> list[tuple[int, int]]:
    """Byte-pair encoding: the pairs to merge, most frequent first; ties: lower ids.

    Symbols 0-255 are the bytes in GPT-2's order, 256 + i is what merge i makes
    (Sennrich et al. 2016, section 3.2, on bytes). Ends early when no pair occurs
    `min_frequency` times.
    """
    index = PairIndex(pieces)
    merges = []
    heap = [(-count, pair) for pair, count in index.pairs.items()]
    heapify(heap)
    with progress_bar(progress, "merges", total=num_merges) as bar:
        while heap and len(merges) < num_merges:
            count, pair = -heap[0][0], heap[0][1]
            if count != index.pairs[pair]:  # out of date: back where it belongs
                heapreplace(heap, (-index.pairs[pair], pair))
                continue
            if count < min_frequency:
                break
            heappop(heap)
            for made in index.merge(pair, chr(256 + len(merges))):
                heappush(heap, (-index.pairs[made], made))
            merges.append((ord(pair[0]), ord(pair[1])))
            bar.update()
    return merges


# %%
def merge_by_rank(word: str, ranks: dict[str, int], made: dict[str, str]) -> str:
    """Merge the pair of lowest rank, everywhere, until no pair can be merged."""
    while True:
        known = filter(ranks.__contains__, map(add, word, word[1:]))
        if not (pair := min(known, key=ranks.__getitem__, default="")):
            return word
        word = word.replace(pair, made[pair])


def merge_by_heap(word: str, ranks: dict[str, int], made: dict[str, str]) -> str:
    """The same for words of any length in n log n steps."""
    symbols, end = list(word), len(word)
    before, after = list(range(-1, end - 1)), list(range(1, end + 1))
    pairs = enumerate(map(add, word, word[1:]))
    heap = [(ranks[pair], at, pair) for at, pair in pairs if pair in ranks]
    heapify(heap)
    while heap:
        _, at, pair = heappop(heap)
        right = after[at]
        if right == end or symbols[at] + symbols[right] != pair:
            continue  # one of the two was merged meanwhile
        symbols[at], symbols[right], after[at] = made[pair], "", after[right]
        if after[at] < end:
            before[after[at]] = at
        for left in (before[at], at):
            if left >= 0 and after[left] < end:
                pair = symbols[left] + symbols[after[left]]
                if pair in ranks:
                    heappush(heap, (ranks[pair], left, pair))
    return "".join(symbols)


# %%
class Encoder(dict):
    """From a piece of text to its ids: worked out once, then looked up.

    Token i is the character chr(i) here, so that one merge is one `str.replace`.
    """

    def __init__(self, model: dict, max_size: int = 200_000) -> None:
        vocab, self.max_size = model["vocab"], max_size
        self.letters = {byte: chr(vocab[letter]) for byte, letter in LETTERS.items()}
        self.whole = vocab if model.get("ignore_merges") else {}
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        self.ranks, self.made = {}, {}
        for rank, (first, second) in enumerate(merges):
            pair = chr(vocab[first]) + chr(vocab[second])
            self.ranks[pair], self.made[pair] = rank, chr(vocab[first + second])
        born = {first + second: rank for rank, (first, second) in enumerate(merges)}
        ranked = ((part, rank) for rank, pair in enumerate(merges) for part in pair)
        in_order = all(born.get(part, -1) < rank for part, rank in ranked)
        self.short = 100 if in_order else 0  # longer words go to the heap

    def __missing__(self, piece: str) -> tuple[int, ...]:
        data = piece.encode()
        if self.whole and (token := "".join(map(LETTERS.get, data))) in self.whole:
            ids = (self.whole[token],)
        else:
            word = "".join(map(self.letters.get, data))
            merge = merge_by_rank if len(word) <= self.short else merge_by_heap
            ids = tuple(map(ord, merge(word, self.ranks, self.made)))
        if len(self) >= self.max_size:
            self.clear()
        if len(data) <= 100:
            self[piece] = ids
        return ids


# %%
def tokenizer_json(
    merges: Iterable[tuple[int, int]],
    special_tokens: Iterable[str] = SPECIAL_TOKENS,
    pattern: str = PATTERN,
) -> dict:
    """The content of a `tokenizer.json`, for the `tokenizers` library."""
    special, tokens = list(special_tokens), list(LETTERS.values())
    pairs = []
    for first, second in merges:
        pairs.append([tokens[first], tokens[second]])
        tokens.append(tokens[first] + tokens[second])
    vocab = {token: i for i, token in enumerate(special + tokens)}
    if len(vocab) < len(special) + len(tokens):
        raise ValueError(f"special tokens must be new and different: {special}")
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    flags["special"] = True
    added = [{"id": i, "content": t, **flags} for i, t in enumerate(special)]
    split = {"type": "Split", "pattern": {"Regex": pattern}}
    split |= {"behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    byte_level |= {"trim_offsets": True, "use_regex": False}
    cutter = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    spec = {"version": "1.0", "truncation": None, "padding": None}
    spec |= {"added_tokens": added, "normalizer": None, "pre_tokenizer": cutter}
    spec |= {"post_processor": None, "decoder": byte_level}
    return spec | {"model": {"type": "BPE", "vocab": vocab, "merges": pairs}}


# %%
class Tokenizer(BaseTokenizer):
    """Byte-level BPE: text to ids and back, lossless. Its state is a `tokenizer.json`.

    A special token's name in a text is plain text unless `allowed_special` names it.
    Raises ValueError if `spec` is another kind of tokenizer.

    Example: `tokenizer.decode(tokenizer.encode(text)) == text` for every text.
    """

    def __init__(self, spec: dict, config: dict | None = None) -> None:
        super().__init__(config)
        self.spec = spec
        self.pattern = compile_pattern(pattern_of(spec))
        added = spec.get("added_tokens", [])
        self.special_tokens = {token["content"]: token["id"] for token in added}
        try:
            self.encoder = Encoder(spec["model"])
            vocab = spec["model"]["vocab"].items()
            known = [(i, t) for t, i in vocab if t not in self.special_tokens]
            self.bytes = {i: bytes(map(BYTES.__getitem__, t)) for i, t in known}
        except KeyError as error:
            raise ValueError(f"its vocabulary lacks {error}") from None
        self.bytes |= {i: name.encode() for name, i in self.special_tokens.items()}
        self.vocab_size = max(self.bytes) + 1

    def encode_plain(self, text: str) -> list[int]:
        """Ids of `text`, in which nothing is special."""
        try:
            pieces = map(self.encoder.__getitem__, self.pattern.findall(text))
            return list(chain.from_iterable(pieces))
        except UnicodeEncodeError:
            at = regex.search(r"\p{Cs}", text).start()
            what = f"U+{ord(text[at]):04X} at position {at}"
            raise ValueError(f"not Unicode text: lone surrogate {what}") from None

    def id_to_bytes(self, id: int) -> bytes:
        if (found := self.bytes.get(int(id))) is None:
            raise ValueError(f"no token has id {id}")
        return found

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`. Bytes that are not UTF-8 become U+FFFD."""
        skip = set(self.special_tokens.values()) if skip_special_tokens else ()
        data = b"".join(self.id_to_bytes(i) for i in ids if int(i) not in skip)
        return data.decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """The text of `ids` as they come; a character once all its bytes are there."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for id in ids:
            if text := decoder.decode(self.id_to_bytes(id)):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def definition(self) -> bytes:
        model, keys = self.spec["model"], ("vocab", "merges", "ignore_merges")
        parts = [pattern_of(self.spec), self.special_tokens, *map(model.get, keys)]
        return json.dumps(parts, sort_keys=True).encode()

    def save_model(self, folder: Path) -> None:
        """Write `tokenizer.json`; `save_pretrained` writes the rest too."""
        write_json(self.spec, folder / "tokenizer.json")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        """A tokenizer from the files that `save_pretrained` writes."""
        folder = Path(folder)
        return cls(read_json(folder / "tokenizer.json"), read_config(folder))


# %%
def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Iterable[str] = SPECIAL_TOKENS,
    pattern: str = PATTERN,
    progress: bool = False,
    min_frequency: int = 2,
    max_pieces: int = 2_000_000,
) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, learned from `texts`, read once.

    Ids: the special tokens (the first one begins, ends and pads a document), the 256
    bytes, then one token a merge. The same texts in any order give the same tokenizer.
    """
    special = list(special_tokens)
    num_merges = vocab_size - 256 - len(special)
    if num_merges < 0:
        raise ValueError(f"{vocab_size=}: 256 bytes and {special} need more")
    pieces = count_pieces(texts, pattern, max_pieces, progress)
    merges = learn_merges(pieces, num_merges, min_frequency, progress)
    if len(merges) < num_merges:
        size = vocab_size - num_merges + len(merges)
        logger.warning("the texts fill only %d of %d tokens", size, vocab_size)
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {"model_input_names": ["input_ids", "attention_mask"]}
    config |= {"clean_up_tokenization_spaces": False}
    roles = ["bos_token", "eos_token", "pad_token"]
    config |= dict.fromkeys(roles, special[0]) if special else {}
    return Tokenizer(tokenizer_json(merges, special, pattern), config)


# %%
def load_tokenizer(source: str | Path) -> BaseTokenizer:
    """A tokenizer from a folder, a `tokenizer.json` or a SentencePiece `.model`.

    A byte-level BPE file is run by `Tokenizer`. Any other goes to the library that
    made it, behind the same methods; the log says why. Raises FileNotFoundError, or
    ValueError for a file that none can read.
    """
    path, names = Path(source), ("tokenizer.json", "tokenizer.model")
    choices = [path / name for name in names] if path.is_dir() else [path]
    if not (path := next((file for file in choices if file.exists()), None)):
        raise FileNotFoundError(f"{source}: no tokenizer.json or tokenizer.model")
    config = read_config(path.parent)
    if path.suffix != ".model":
        try:
            return Tokenizer(read_json(path), config)
        except ValueError as reason:
            logger.info("%s is read by the tokenizers library: %s", path, reason)
    return adapt(path, config, BYTES)
