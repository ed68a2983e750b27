"""Tokenizer files of other libraries, behind the methods that the course's own has."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from minillm.support.files import read_json, write_atomic, write_json

SPECIAL_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")


def split_special(text: str, names: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Special tokens and the stretches between them, each with where it starts.

    Example: list(split_special("a<s>b", ["<s>"])) == [(0, "a"), (1, "<s>"), (4, "b")]
    """
    either = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    start = 0
    for piece in re.split(f"({either})", text) if either else [text]:
        if piece:
            yield start, piece
        start += len(piece)


def write_config(config: dict, special_tokens: Iterable[str], folder: Path) -> None:
    """Write the two files that give special tokens their roles, and the template."""
    roles = {key: value for key, value in config.items() if key in SPECIAL_ROLES}
    named = {t["content"] if isinstance(t, dict) else t for t in roles.values()}
    more = [name for name in special_tokens if name not in named]
    config = {key: config[key] for key in sorted(config) if config[key] is not None}
    write_json(config, folder / "tokenizer_config.json")
    roles = ({"additional_special_tokens": more} if more else {}) | roles
    write_json(dict(sorted(roles.items())), folder / "special_tokens_map.json")


def read_config(folder: Path) -> dict:
    """What the files beside a tokenizer's model say: roles and chat template."""
    found = {}
    if (path := folder / "special_tokens_map.json").exists():
        found = {k: v for k, v in read_json(path).items() if k in SPECIAL_ROLES}
    if (path := folder / "tokenizer_config.json").exists():
        found |= read_json(path)
    if (path := folder / "chat_template.jinja").exists():
        found["chat_template"] = path.read_text("utf-8")
    return found


GPT2_PATTERN = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
FOREIGN = ("dropout", "unk_token", "fuse_unk", "byte_fallback")
FOREIGN += ("continuing_subword_prefix", "end_of_word_suffix")


def pattern_of(spec: dict) -> str:
    """The pattern of a byte-level BPE `tokenizer.json`; ValueError if it is another."""
    if not isinstance(spec, dict) or "model" not in spec:
        raise ValueError("it is not a file of the tokenizers library")
    model, cutter = spec["model"], spec.get("pre_tokenizer") or {}
    added, steps = spec.get("added_tokens", []), cutter.get("pretokenizers", [cutter])
    last = {"type": None, "add_prefix_space": True, "use_regex": True} | steps[-1]
    if model.get("type") != "BPE" or any(map(model.get, FOREIGN)):
        raise ValueError("its model is not plain byte-pair encoding")
    if spec.get("normalizer"):
        raise ValueError("it normalizes text")
    if any(t["lstrip"] or t["rstrip"] or t["single_word"] for t in added):
        raise ValueError("its added tokens take the space around them")
    if not all(t["special"] for t in added):
        raise ValueError("it has added tokens that are not special")
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        raise ValueError("it does not work on bytes")
    match steps[:-1], last["use_regex"]:
        case [], True:
            return GPT2_PATTERN
        case [{"type": "Split", "behavior": "Isolated"} as split], False:
            if split["invert"] is False and "Regex" in split["pattern"]:
                return split["pattern"]["Regex"]
    raise ValueError("it cuts text in a way of its own")


class BaseTokenizer:
    """What every tokenizer of the course does, whatever cuts and numbers its text.

    A subclass adds `special_tokens` (names to ids), `vocab_size`, `encode_plain`,
    `decode`, `id_to_bytes`, `definition` (what fixes its ids, as bytes) and
    `save_model`. `config` is the content of `tokenizer_config.json`.
    """

    def __init__(self, config: dict | None = None) -> None:
        self.config = dict(config or {})
        self.chat_template = self.config.pop("chat_template", None)

    def encode(self, text: str, allowed_special: Iterable[str] = ()) -> list[int]:
        """Ids of `text`. Only the special tokens in `allowed_special` are parsed."""
        if isinstance(allowed_special, str):
            raise TypeError(f"{allowed_special=} must be a list of names")
        if not (names := set(allowed_special)):
            return self.encode_plain(text)
        known, ids = self.special_tokens, []
        if unknown := names - set(known):
            raise ValueError(f"no special token {unknown}: {list(known)}")
        for _, piece in split_special(text, names):
            ids += [known[piece]] if piece in names else self.encode_plain(piece)
        return ids

    def encode_batch(self, texts: Iterable[str], allowed_special=()) -> list[list[int]]:
        return [self.encode(text, allowed_special) for text in texts]

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """What each id adds to the text of those before it; half characters wait."""
        window, shown = [], ""
        for id in ids:
            window.append(id)
            text = self.decode(window)
            if not text.endswith("\ufffd"):
                if len(text) > len(shown):
                    yield text[len(shown) :]
                window = window[-8:]
                shown = self.decode(window)
        if len(text := self.decode(window)) > len(shown):
            yield text[len(shown) :]

    def token_to_id(self, token: str) -> int:
        """The id of a special token, or of the one token that is all of `token`."""
        if token in self.special_tokens:
            return self.special_tokens[token]
        if len(ids := self.encode(token)) != 1:
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
        write_config(config, self.special_tokens, Path(folder))


class TokenizersAdapter(BaseTokenizer):
    """Any `tokenizer.json`, run by the `tokenizers` library; else ValueError.

    `byte_of`: the byte of each letter that a byte-level vocabulary is written in.
    """

    def __init__(self, spec: dict, config: dict, byte_of: Mapping[str, int]) -> None:
        from tokenizers import Tokenizer as RustTokenizer

        super().__init__(config)
        try:
            self.rust = rust = RustTokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library has no narrower kind
            raise ValueError(f"not a tokenizer.json: {error}") from None
        rust.no_padding()
        rust.no_truncation()
        rust.encode_special_tokens = True  # their names in a text are text
        added = rust.get_added_tokens_decoder().items()
        self.special_tokens = {t.content: i for i, t in added if t.special}
        self.byte_of = byte_of if "'ByteLevel'" in str(spec.get("decoder")) else {}
        self.vocab_size = max(rust.get_vocab().values()) + 1

    def encode_plain(self, text: str) -> list[int]:
        return self.rust.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        return self.rust.decode([int(i) for i in ids], skip_special_tokens)

    def id_to_bytes(self, id: int) -> bytes:
        if (token := self.rust.id_to_token(int(id))) is None:
            raise ValueError(f"no token has id {id}")
        return piece_bytes(token, self.byte_of)

    def definition(self) -> bytes:
        return self.rust.to_str().encode()

    def save_model(self, folder: Path) -> None:
        write_json(json.loads(self.rust.to_str()), folder / "tokenizer.json")


class SentencePieceAdapter(BaseTokenizer):
    """A SentencePiece `tokenizer.model`, run by the `sentencepiece` library."""

    def __init__(self, model: bytes, config: dict) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = SentencePieceProcessor(model_proto=model)
        self.vocab_size = self.model.get_piece_size()
        special = filter(self.model.is_control, range(self.vocab_size))
        self.special_tokens = {self.model.id_to_piece(i): i for i in special}
        ends = {"bos_token": self.model.bos_id(), "eos_token": self.model.eos_id()}
        ends = {k: self.model.id_to_piece(i) for k, i in ends.items() if i >= 0}
        super().__init__(ends | config)

    def encode_plain(self, text: str) -> list[int]:
        return self.model.encode(text)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`; SentencePiece never shows its control tokens."""
        return self.model.decode([int(i) for i in ids])

    def id_to_bytes(self, id: int) -> bytes:
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"no token has id {id}")
        return piece_bytes(self.model.id_to_piece(int(id)), {})

    def definition(self) -> bytes:
        return self.model.serialized_model_proto()

    def save_model(self, folder: Path) -> None:
        with write_atomic(folder / "tokenizer.model") as temporary:
            temporary.write_bytes(self.definition())


def piece_bytes(token: str, byte_of: Mapping[str, int]) -> bytes:
    """Bytes of a token: letters of `byte_of`; else `<0x0A>` is a byte, `▁` a space."""
    if set(token) <= set(byte_of):
        return bytes(map(byte_of.get, token))
    if found := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes([int(found[1], 16)])
    return token.replace("▁", " ").encode()


def adapt(path: Path, config: dict, byte_of: Mapping[str, int]) -> BaseTokenizer:
    """The tokenizer in a file of another library, run by that library."""
    if path.suffix == ".model":
        return SentencePieceAdapter(path.read_bytes(), config)
    return TokenizersAdapter(read_json(path), config, byte_of)
