"""Texts from wherever they are: files, folders, web addresses, public sets."""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from minillm.support import formats
from minillm.support.files import read_json, remove, sha256_of, write_json
from minillm.support.formats import pick_text, read_jsonl, read_rows, suffix_of


def read_texts(
    source: str | Path, column: str = "text", skip: bool = False
) -> Iterator[str]:
    """Yield documents, one at a time, from a file, a folder or a named public set.

    `source`: a `.txt`, `.jsonl`, `.json`, `.csv` or `.parquet` file, also as `.gz`; a
    folder of them; the web address of such a file; or a data set on the Hugging Face
    hub, such as `roneneldan/TinyStories`. `column` is where the rows hold their text.
    With `skip`, bad rows are counted and reported instead of raising `ValueError`.
    """
    if not Path(source).exists():
        yield from (pick_text(row, column) for row in fetch_rows(str(source)))
        return
    for path in formats.files_in(source):
        name = "text" if suffix_of(path) == ".txt" else column
        yield from read_rows(path, skip, lambda row, name=name: pick_text(row, name))


def names_set(name: str) -> bool:
    """Whether this is a name on the hub: `owner/set`, or `owner/set:file.jsonl`."""
    place = name.partition(":")[0]
    return place.count("/") == 1 and suffix_of(place) not in formats.FORMATS


def open_public(name: str):
    """The training split of a public set, or the rows at an address, as a stream.

    `name` is `owner/set` on the Hugging Face hub or its mirror `HF_ENDPOINT`; for one
    of several files, `owner/set:file.jsonl`; or an address, `https://host/file.csv`.
    """
    import datasets  # slow to import, and seldom needed
    from huggingface_hub import HfApi, constants

    place, _, file = (name, "", "") if "://" in name else name.partition(":")
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        if "://" in name:
            formats.web_files(silence=4).info(name)
            stream = datasets.IterableDataset.from_generator
            return stream(read_rows, gen_kwargs={"path": name})
        HfApi().dataset_info(place, timeout=4)  # `datasets` would try for minutes
        how = {"split": "train", "streaming": True, "data_files": file or None}
        return datasets.load_dataset(place, **how)
    except Exception as error:  # as has one that can't be made
        reason = " ".join(str(error.__cause__ or error).split())[:80]
        target = Path((file or place).removesuffix(".gz")).stem + ".jsonl"
        raise ValueError(
            f"{name}: no such file, and no such public set within reach ({reason}); "
            f"where there is a network, run `minillm data convert {name} {target}`"
        ) from None


def _fetch(name: str, part: Path) -> Iterator[dict]:
    """Yield the rows that the file `part` holds, then fetch and add the others."""
    note = part.with_suffix(".state")
    with open(part, "ab") as file:
        state = read_json(note) if note.exists() else {"bytes": 0, "where": None}
        file.truncate(state["bytes"])  # the last row may have been cut
        if state["bytes"]:
            yield from read_jsonl(part)
        rows = open_public(name)
        if state["where"]:
            rows.load_state_dict(state["where"])
        try:
            for number, row in enumerate(rows, 1):
                line = json.dumps(row, ensure_ascii=False, default=str)
                file.write(line.encode("utf-8") + b"\n")
                state = {"bytes": file.tell(), "where": rows.state_dict()}
                yield row
                if number % 1000 == 0:  # even if the machine is switched off now
                    file.flush()
                    write_json(state, note)
        except ValueError:  # a reader's own: it says which row
            raise
        except Exception as error:  # a broken connection has many names
            what = f"interrupted ({type(error).__name__})"
            raise ValueError(f"{what}; what came is kept: run again") from error
        finally:
            file.flush()
            write_json(state, note)


def fetch_rows(name: str) -> Iterator[dict]:
    """Yield the rows of a public set or an address, cached, or while they arrive.

    The cache is the folder `MINILLM_CACHE`, or else `~/.cache/minillm`. What was
    fetched is kept if the connection breaks, and the next call resumes there.
    """
    from filelock import FileLock, Timeout

    if "://" in name:
        formats.format_of(name)
    elif not names_set(name):
        raise FileNotFoundError(f"{name}: no such file or folder")
    folder = os.environ.get("MINILLM_CACHE") or Path.home() / ".cache/minillm"
    path = Path(folder) / (re.sub(r"[^\w.-]+", "--", name) + ".jsonl")
    part, about = path.with_suffix(".part"), path.with_suffix(".about")
    if path.exists():
        if about.exists() and read_json(about)["sha256"] == sha256_of(path):
            yield from read_jsonl(path)
            return
        print(f"{path} has changed since it was fetched: again", file=sys.stderr)
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_suffix(".lock"), timeout=0):
            yield from _fetch(name, part)
            write_json({"name": name, "sha256": sha256_of(part)}, about)
            part.replace(path)
            remove(part.with_suffix(".state"))
    except Timeout:
        raise ValueError(f"{name} is being fetched by another process") from None
