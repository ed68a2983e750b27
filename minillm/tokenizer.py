"""Text to integers and back without loss: byte-pair encoding, built by hand."""

# Generated from notebooks/02_tokenizer.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "logger",
    "LETTERS",
    "BYTES",
    "SYMBOLS",
    "PATTERN",
    "GPT2_PATTERN",
    "SPECIAL_TOKENS",
    "ROLES",
    "progress_bar",
    "byte_letters",
    "compile_pattern",
    "count_pieces",
    "PairIndex",
    "merge_in_index",
    "learn_merges",
    "merge_by_rank",
    "merge_by_heap",
    "Encoder",
    "tokenizer_json",
    "pattern_of",
    "write_json",
    "open_json",
    "write_config",
    "read_config",
    "BaseTokenizer",
    "split_at",
    "Tokenizer",
    "train_bpe",
    "write_header",
    "write_tokens",
    "TokenizersAdapter",
    "SentencePieceAdapter",
    "piece_bytes",
    "stream_by_decoding",
    "load_tokenizer",
]

# %%
import codecs
import hashlib
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush, heapreplace
from itertools import chain
from operator import add
from pathlib import Path
from typing import BinaryIO

import numpy as np
import regex
from tqdm import tqdm

from minillm.data import write_atomic

logger = logging.getLogger(__name__)


def progress_bar(progress: bool, name: str, **options: object) -> tqdm:
    """A bar if `progress`, and if the setting TQDM_DISABLE is not there to hide it."""
    return tqdm(desc=name, **options, **({} if progress else {"disable": True}))


# %%
def byte_letters() -> dict[int, str]:
    """One printable letter for each of the 256 bytes, in the order of their ids.

    A vocabulary file is JSON text, so GPT-2 writes a byte that is not printable as
    a letter from U+0100 on; a space becomes `Ġ`. Printable bytes stand for themselves.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in LETTERS.items()}
SYMBOLS = {byte: chr(i) for i, byte in enumerate(LETTERS)}

# %%
PATTERN = (
    r"'(?:[sdmtSDMT]|[lL]{2}|[rRvV][eE])"  # 's 'd 'm 't 'll 're 've
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with the space or sign before it
    r"|\p{N}"  # one digit
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"  # line ends; spaces, but for the last; spaces
)
GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def compile_pattern(pattern: str) -> regex.Pattern:
    """`pattern` compiled so that its pieces, joined, are always the whole text.

    What the pattern itself would skip becomes a piece of its own.
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

    Memory stays bounded: with more than `max_pieces` different pieces, the rarest
    are forgotten until half of that are left, and the log says so.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be an iterable of str, such as [text]")
    find, pieces, forgotten = compile_pattern(pattern), Counter(), 0
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
        self.words = ["".join(map(SYMBOLS.get, piece.encode())) for piece in pieces]
        self.counts = list(pieces.values())
        self.pairs, self.places = defaultdict(int), defaultdict(list)
        for index, word in enumerate(self.words):
            for pair in map(add, word, word[1:]):
                self.pairs[pair] += self.counts[index]
                self.places[pair].append(index)


# %%
def merge_in_index(index: PairIndex, pair: str, symbol: str) -> set[str]:
    """Replace `pair` by `symbol` in every word of `index`; the pairs that this made.

    Only the neighbors of a replaced pair change, so only they are recounted.
    """
    words, pairs, places = index.words, index.pairs, index.places
    (first, second), made = pair, set()
    for number in places.pop(pair):
        if pair not in words[number]:  # another merge took it; a repetition
            continue
        word = words[number] = words[number].replace(pair, symbol)
        times, at, last = index.counts[number], word.find(symbol), len(word) - 1
        while at >= 0:
            if at > 0:
                left = word[at - 1]
                pairs[(second if left == symbol else left) + first] -= times
                pairs[left + symbol] += times
                places[left + symbol].append(number)
                made.add(left + symbol)
            if at < last and (right := word[at + 1]) != symbol:
                pairs[second + right] -= times  # if equal: the next one's left
                pairs[symbol + right] += times
                places[symbol + right].append(number)
                made.add(symbol + right)
            at = word.find(symbol, at + 1)
    del pairs[pair]
    return made


# %%
def learn_merges(
    pieces: Mapping[str, int],
    num_merges: int,
    min_frequency: int = 2,
    progress: bool = False,
) -> list[tuple[int, int]]:
    """Byte-pair encoding: the pairs to merge, most frequent first; ties: lower ids.

    Symbols 0-255 are the bytes in the order of `LETTERS`, 256 + i is what merge i
    makes (Sennrich et al. 2016, section 3.2, on bytes). Ends early when no pair
    occurs `min_frequency` times.
    """
    index, merges = PairIndex(pieces), []
    heap = [(-count, pair) for pair, count in index.pairs.items()]
    heapify(heap)
    with progress_bar(progress, "merges", total=num_merges) as bar:
        while heap and len(merges) < num_merges:
            count, pair = -heap[0][0], heap[0][1]
            if count != index.pairs[pair]:  # changed since: back where it belongs
                heapreplace(heap, (-index.pairs[pair], pair))
                continue
            if count < min_frequency:
                break
            heappop(heap)
            for made in merge_in_index(index, pair, chr(256 + len(merges))):
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
        self.whole = vocab if model.get("ignore_merges") else {}  # Llama 3: words first
        self.ranks, self.made, born, in_order = {}, {}, {}, True
        merges = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        for rank, (first, second) in enumerate(merges):
            pair, token = chr(vocab[first]) + chr(vocab[second]), first + second
            self.ranks[pair], self.made[pair] = rank, chr(vocab[token])
            born[token] = rank
        for rank, parts in enumerate(merges):  # are parts made before the whole?
            in_order &= all(born.get(part, -1) < rank for part in parts)
        self.short = 100 if in_order else 0  # if not: one place at a time

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
    """What a `tokenizer.json` of the `tokenizers` library holds, for these merges."""
    special, tokens, pairs = list(special_tokens), list(LETTERS.values()), []
    for first, second in merges:
        pairs.append([tokens[first], tokens[second]])
        tokens.append(tokens[first] + tokens[second])
    vocab = {token: i for i, token in enumerate(special + tokens)}
    if len(vocab) < len(special) + len(tokens):
        raise ValueError(f"special tokens must be new and different: {special}")
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    flags["special"] = True
    added = [{"id": i, "content": t, **flags} for i, t in enumerate(special)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = False
    split = {"type": "Split", "pattern": {"Regex": pattern}}
    split |= {"behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": pairs},
    }


# %%
def pattern_of(spec: dict) -> str:
    """The pattern of a byte-level BPE `tokenizer.json`; ValueError if it is another."""
    if not isinstance(spec, dict) or "model" not in spec:
        raise ValueError("it is not of the tokenizers library")
    model, cutter = spec["model"], spec.get("pre_tokenizer") or {}
    steps = cutter.get("pretokenizers", [cutter])
    foreign = ["dropout", "unk_token", "continuing_subword_prefix"]
    foreign += ["end_of_word_suffix", "fuse_unk", "byte_fallback"]
    added = spec.get("added_tokens", [])
    if model.get("type") != "BPE" or any(map(model.get, foreign)):
        raise ValueError("its model is not plain byte-pair encoding")
    if spec.get("normalizer"):
        raise ValueError("it normalizes text")
    if any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added):
        raise ValueError("its added tokens take the space around them")
    if not all(t["special"] for t in added):
        raise ValueError("it has added tokens that are not special")
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        raise ValueError("it does not work on bytes")
    if len(steps) == 1 and last.get("use_regex", True):
        return GPT2_PATTERN
    plain = {"behavior": "Isolated", "invert": False, "type": "Split"}
    if len(steps) == 2 and plain.items() <= steps[0].items():
        if not last.get("use_regex", True) and "Regex" in steps[0]["pattern"]:
            return steps[0]["pattern"]["Regex"]
    raise ValueError("it cuts text in a way of its own")


# %%
ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def write_json(content: object, path: Path) -> None:
    """Write `content` as indented JSON in UTF-8, whole or not at all."""
    text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    with write_atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def open_json(path: Path) -> dict:
    """What a JSON file holds; an error names the file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None


def write_config(config: dict, special_tokens: list[str], folder: Path) -> None:
    """Write what stands beside a tokenizer's model: roles, chat template."""
    roles = {key: value for key, value in config.items() if key in ROLES}
    named = {t["content"] if isinstance(t, dict) else t for t in roles.values()}
    more = [name for name in special_tokens if name not in named]
    config = {key: config[key] for key in sorted(config) if config[key] is not None}
    write_json(config, folder / "tokenizer_config.json")
    roles = ({"additional_special_tokens": more} if more else {}) | roles
    write_json(dict(sorted(roles.items())), folder / "special_tokens_map.json")


def read_config(folder: Path) -> dict:
    """What the files beside a tokenizer's model say: roles, chat template."""
    found = {}
    if (path := folder / "special_tokens_map.json").exists():
        found = {k: v for k, v in open_json(path).items() if k in ROLES}
    if (path := folder / "tokenizer_config.json").exists():
        found |= open_json(path)
    if (path := folder / "chat_template.jinja").exists():
        found["chat_template"] = path.read_text("utf-8")
    return found


# %%
class BaseTokenizer:
    """What every tokenizer of this course does, whatever cuts and numbers its text.

    Those below add `encode_plain`, `decode`, `stream`, `id_to_bytes`, `definition`
    (what fixes its ids, as bytes) and `save_model`. `config` is what
    `tokenizer_config.json` holds; `special_tokens` maps their names to their ids.
    """

    config: dict
    special_tokens: dict[str, int]
    vocab_size: int
    chat_template: str | None = None

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Ids of `text`. Only the special tokens in `allowed_special` are parsed."""
        if isinstance(allowed_special, str):
            raise TypeError(f"{allowed_special=} must be a list of names")
        if not (names := set(allowed_special)):
            return self.encode_plain(text)
        known, plain = self.special_tokens, self.encode_plain
        if unknown := names - set(known):
            raise ValueError(f"no special token {unknown}: {list(known)}")
        parts = split_at(text, names)
        return [i for p in parts for i in ([known[p]] if p in names else plain(p))]

    def encode_batch(self, texts: Iterable[str], allowed_special=()) -> list[list[int]]:
        return [self.encode(text, allowed_special) for text in texts]

    def token_to_id(self, token: str) -> int:
        """The id of a special token, or of the one token that is all of `token`."""
        ids = [self.special_tokens.get(token)]
        ids = ids if token in self.special_tokens else self.encode(token)
        if len(ids) != 1:
            raise ValueError(f"{token!r} is {len(ids)} tokens, not one")
        return ids[0]

    def special_id(self, role: str) -> int | None:
        """The id of `bos_token`, `eos_token` or `pad_token`, if the files name one."""
        token = self.config.get(role)
        token = token["content"] if isinstance(token, dict) else token
        return self.special_tokens.get(token)

    @property
    def eos_token_id(self) -> int | None:
        return self.special_id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        pad = self.special_id("pad_token")
        return self.eos_token_id if pad is None else pad

    def fingerprint(self) -> str:
        """SHA-256 of what fixes the ids: two tokenizers that share it agree."""
        return hashlib.sha256(self.definition()).hexdigest()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files that `transformers.AutoTokenizer.from_pretrained` reads."""
        self.save_model(Path(folder))
        config = self.config | {"chat_template": self.chat_template}
        write_config(config, list(self.special_tokens), Path(folder))


def split_at(text: str, names: Iterable[str]) -> list[str]:
    """`text` in parts, so that each of `names` in it is a part of its own."""
    longest_first = sorted(names, key=len, reverse=True)
    return regex.split(f"({'|'.join(map(regex.escape, longest_first))})", text)


# %%
class Tokenizer(BaseTokenizer):
    """Byte-level BPE: text to ids and back, lossless. Its state is a `tokenizer.json`.

    A special token's name in a text is plain text unless `allowed_special` names it.

    Example: `tokenizer.decode(tokenizer.encode(text)) == text` for every text.
    """

    def __init__(self, spec: dict, config: dict | None = None) -> None:
        self.spec, self.config = spec, dict(config or {})
        self.chat_template = self.config.pop("chat_template", None)
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
        """The text of `ids`. Bytes that are no UTF-8 become U+FFFD."""
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
        write_json(self.spec, folder / "tokenizer.json")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Tokenizer":
        folder = Path(folder)
        return cls(open_json(folder / "tokenizer.json"), read_config(folder))


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
    config |= {role: special[0] for role in ROLES[:3] if special}
    return Tokenizer(tokenizer_json(merges, special, pattern), config)


# %%
def write_header(file: BinaryIO, length: int, dtype: np.dtype) -> None:
    """The first bytes of a .npy file; as long for every length."""
    shape = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, shape)


# %%
def write_tokens(
    texts: Iterable[str],
    tokenizer: BaseTokenizer,
    path: str | Path,
    progress: bool = False,
) -> dict:
    """Write `path.npy`, one flat array of ids, and `path.json`, what it holds.

    The array is EOT document EOT document ... EOT, in uint16 where the ids fit, else
    uint32; `np.load(..., mmap_mode="r")` reads it. Empty texts are left out. Texts
    are taken one at a time; the files appear when all is written.
    """
    eot = tokenizer.eos_token_id
    if eot is None:
        raise ValueError("the tokenizer names no eos_token to set between documents")
    path = Path(path).with_name(Path(path).name.removesuffix(".npy"))
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    tokens, documents, num_bytes = 1, 0, 0
    with write_atomic(f"{path}.npy") as temporary, open(temporary, "wb") as file:
        write_header(file, tokens, dtype)
        file.write(np.array([eot], dtype).tobytes())
        for text in progress_bar(progress, "tokens", iterable=texts):
            if ids := tokenizer.encode(text):
                file.write(np.array([*ids, eot], dtype).tobytes())
                tokens, documents = tokens + len(ids) + 1, documents + 1
                num_bytes += len(text.encode())
        file.seek(0)
        write_header(file, tokens, dtype)
    facts = {"tokens": tokens, "documents": documents, "bytes": num_bytes}
    facts["tokenizer"] = tokenizer.fingerprint()
    write_json(facts, Path(f"{path}.json"))
    return facts


# %%
class TokenizersAdapter(BaseTokenizer):
    """Any other `tokenizer.json`, run by the `tokenizers` library."""

    def __init__(self, spec: dict, config: dict | None = None) -> None:
        from tokenizers import Tokenizer as RustTokenizer

        self.config = dict(config or {})
        self.chat_template = self.config.pop("chat_template", None)
        try:
            self.rust = rust = RustTokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library has no narrower kind
            raise ValueError(f"not a tokenizer.json: {error}") from None
        rust.no_padding(), rust.no_truncation()
        rust.encode_special_tokens = True  # their names in a text are text
        added = rust.get_added_tokens_decoder().items()
        self.special_tokens = {t.content: i for i, t in added if t.special}
        self.byte_level = '"ByteLevel"' in json.dumps(spec.get("decoder"))
        self.vocab_size = max(rust.get_vocab().values()) + 1

    def encode_plain(self, text: str) -> list[int]:
        return self.rust.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        return self.rust.decode([int(i) for i in ids], skip_special_tokens)

    def id_to_bytes(self, id: int) -> bytes:
        if (token := self.rust.id_to_token(int(id))) is None:
            raise ValueError(f"no token has id {id}")
        return piece_bytes(token, self.byte_level)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        return stream_by_decoding(self.decode, ids)

    def definition(self) -> bytes:
        return self.rust.to_str().encode()

    def save_model(self, folder: Path) -> None:
        write_json(json.loads(self.rust.to_str()), folder / "tokenizer.json")


# %%
class SentencePieceAdapter(BaseTokenizer):
    """A SentencePiece `tokenizer.model`, run by the `sentencepiece` library."""

    def __init__(self, model: bytes, config: dict | None = None) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = SentencePieceProcessor(model_proto=model)
        self.vocab_size = self.model.get_piece_size()
        special = filter(self.model.is_control, range(self.vocab_size))
        self.special_tokens = {self.model.id_to_piece(i): i for i in special}
        ends = {"bos_token": self.model.bos_id(), "eos_token": self.model.eos_id()}
        ends = {k: self.model.id_to_piece(i) for k, i in ends.items() if i >= 0}
        self.config = ends | dict(config or {})
        self.chat_template = self.config.pop("chat_template", None)

    def encode_plain(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`; SentencePiece never shows its control tokens."""
        return self.model.decode([int(i) for i in ids])

    def id_to_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"no token has id {id}")
        return piece_bytes(self.model.id_to_piece(int(id)))

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        return stream_by_decoding(self.decode, ids)

    def definition(self) -> bytes:
        return self.model.serialized_model_proto()

    def save_model(self, folder: Path) -> None:
        with write_atomic(folder / "tokenizer.model") as temporary:
            temporary.write_bytes(self.definition())


# %%
def piece_bytes(token: str, byte_level: bool = False) -> bytes:
    """Bytes of a SentencePiece token: `<0x0A>` is one byte, `▁` is a space."""
    if byte_level and set(token) <= set(BYTES):
        return bytes(map(BYTES.get, token))
    if found := regex.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes([int(found[1], 16)])
    return token.replace("▁", " ").encode()


def stream_by_decoding(decode: Callable, ids: Iterable[int]) -> Iterator[str]:
    """What each id adds to the text of those before it; half characters wait."""
    window, shown = [], ""
    for id in ids:
        window.append(id)
        text = decode(window)
        if not text.endswith("\ufffd"):
            if len(text) > len(shown):
                yield text[len(shown) :]
            window = window[-8:]
            shown = decode(window)
    if len(text := decode(window)) > len(shown):
        yield text[len(shown) :]


# %%
def load_tokenizer(source: str | Path) -> BaseTokenizer:
    """A tokenizer from a folder, a `tokenizer.json` or a SentencePiece `.model`.

    A byte-level BPE file is run by `Tokenizer`. Any other goes to the library that
    made it, behind the same methods; the log says why.
    """
    path = Path(source)
    if path.is_dir():
        choices = [path / name for name in ("tokenizer.json", "tokenizer.model")]
        path = next((file for file in choices if file.exists()), None)
    if path is None or not path.exists():
        raise FileNotFoundError(f"{source}: no tokenizer.json or tokenizer.model")
    config = read_config(path.parent)
    if path.suffix == ".model":
        return SentencePieceAdapter(path.read_bytes(), config)
    spec = open_json(path)
    try:
        return Tokenizer(spec, config)
    except ValueError as reason:
        logger.info("%s is read by the tokenizers library: %s", path, reason)
        return TokenizersAdapter(spec, config)
