"""What a command is given, opened: data and tokenizers."""

import json
import os
import sys
import time
from pathlib import Path

from minillm.app.errors import naming, need
from minillm.support.files import write_atomic
from minillm.support.formats import files_in
from minillm.support.sources import read_texts
from minillm.support.token_files import TokenFile, write_tokens
from minillm.tokenizer import load_tokenizer


def data_source(data: str) -> str:
    """`data`; if it is a missing default, an error that names `minillm data make`."""
    default = data.startswith("runs/")
    return str(need(data, "minillm data make")) if default else data


def beside(data: str, name: str) -> Path | None:
    """The file of that name in the folder of `data`, if it exists."""
    path = Path(data).with_name(name)
    return path if path.exists() else None


def open_tokenizer(path: str | Path):
    """The tokenizer at `path`, or an error that says how to make one."""
    need(path, "minillm tokenizer train")
    with naming(path, "make it again with `minillm tokenizer train`, or name another"):
        return load_tokenizer(path)


def open_corpus(data: str, column: str, tokenizer, folder: str | Path):
    """The documents of a corpus as tokens, ready to train on."""
    path = tokenize(data, column, tokenizer, Path(folder) / "tokens.npy")
    with naming(path, "name a file that `minillm pretrain` or write_tokens made"):
        return TokenFile(path, tokenizer)


def tokenize(data: str, column: str, tokenizer, path: Path) -> Path:
    """The corpus's token file at `path`: written unless it was made from the same.

    Of several processes the first writes it, and the others wait for it.
    """
    if data.endswith(".npy"):
        return need(data, "minillm pretrain --data TEXTS")
    files = files_in(data) if Path(data).exists() else []  # none: a public set
    stamps = [(str(f), f.stat().st_size, f.stat().st_mtime) for f in files]
    source = json.dumps([data, column, tokenizer.fingerprint(), stamps])
    record = path.with_suffix(".source")
    first = os.environ.get("RANK", "0") == "0"
    while not (record.exists() and record.read_text() == source):
        if first:
            record.unlink(missing_ok=True)
            texts, progress = read_texts(data, column), sys.stderr.isatty()
            write_tokens(texts, tokenizer, path, progress=progress)
            with write_atomic(record) as temporary:
                temporary.write_text(source)
        time.sleep(0 if first else 0.2)
    return path
