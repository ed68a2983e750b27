"""A corpus as one flat file of token ids, written once and memory-mapped."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from minillm.support.files import read_json, write_atomic, write_json


def progress_bar(progress: bool, name: str, **options: object) -> tqdm:
    """A bar if `progress`, and if the setting TQDM_DISABLE is not there to hide it."""
    return tqdm(desc=name, **options, **({} if progress else {"disable": True}))


def write_header(file: BinaryIO, length: int, dtype: np.dtype) -> None:
    """The first bytes of a .npy file; as long for every length."""
    shape = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, shape)


def write_tokens(
    texts: Iterable[str], tokenizer, path: str | Path, progress: bool = False
) -> dict:
    """Write `path.npy`, one flat array of ids, and `path.json`; returns the latter.

    The array is EOT document EOT document ... EOT, in uint16 where the ids fit, else
    uint32; `np.load(..., mmap_mode="r")` reads it. Empty texts are left out. Texts
    are read one at a time; the files appear when all is written. Raises ValueError
    for a tokenizer without an end-of-text token.
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


class TokenFile:
    """The documents of a token file (.npy, memory-mapped): EOT doc EOT doc ... EOT.

    `[i]` gives two views of the file, one token apart: the input, EOT and the document,
    and the labels, the document and EOT. `lengths` counts the tokens of each input.
    Raises ValueError if it is empty, or was written with another tokenizer.
    """

    def __init__(self, path: str | Path, tokenizer=None):
        name = Path(path).name.removesuffix(".npy") + ".npy"
        self.path = Path(path).with_name(name)
        self.tokens = ids = np.load(self.path, mmap_mode="r")
        about = read_json(self.path.with_suffix(".json"))
        if tokenizer and tokenizer.fingerprint() != about["tokenizer"]:
            raise ValueError(f"{self.path.name} was written with another tokenizer")
        size = 1 << 24  # tokens compared at a time: the file may exceed the memory
        starts = range(0, len(ids), size)
        found = [at + np.flatnonzero(ids[at : at + size] == ids[0]) for at in starts]
        self.ends = np.concatenate(found)
        self.lengths = np.diff(self.ends)
        if not len(self.lengths):
            raise ValueError(f"{self.path.name} holds no documents")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        piece = self.tokens[self.ends[i] : self.ends[i + 1] + 1]
        return piece[:-1], piece[1:]
