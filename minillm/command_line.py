"""One command, `minillm`, with a subcommand for each stage of the course."""

# Generated from notebooks/appendix_command_line.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "PACKAGES",
    "Finding",
    "COMMANDS",
    "DEFAULTS",
    "HELP",
    "DISK_ERRORS",
    "MENDS",
    "find_object",
    "say",
    "need",
    "naming",
    "make_data",
    "describe_texts",
    "show_first",
    "inspect_data",
    "convert_data",
    "split_data",
    "train_tokenizer",
    "data_source",
    "encode_text",
    "inspect_tokenizer",
    "open_tokenizer",
    "tokenize",
    "open_corpus",
    "sources_of",
    "model_config",
    "open_model",
    "Checker",
    "pretrain",
    "check_device",
    "random_model",
    "open_validation",
    "finish",
    "Judge",
    "sft",
    "with_documents",
    "beside",
    "generate_text",
    "chat",
    "check_python",
    "check_room",
    "total_memory",
    "small_computation",
    "two_steps",
    "check_devices",
    "devices",
    "check_speed",
    "doctor",
    "make_parser",
    "split_command",
    "commands_of",
    "check_settings_file",
    "plainly",
    "run_command",
    "overview",
    "asks_for_overview",
    "explain",
    "is_expected",
    "show_warning",
    "main",
]

# %%
import errno
import json
import os
import platform
import re
import shutil
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from minillm.data import (
    compress,
    deduplicate,
    diversity,
    files_in,
    held_out,
    read_texts,
    sample_texts,
    summarize,
    write_atomic,
    write_jsonl,
)


# %%
def find_object(name: str) -> Any:
    """`"package.module:attribute"` -> that object, imported; also from this folder."""
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # a program's own path does not hold it
        sys.path.append(os.getcwd())
    try:
        return getattr(import_module(module), attribute or module)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} is not module:function: {error}") from None


def say(text: str = "", end: str = "\n") -> None:
    """Print at once, on the first of several processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(text, end=end, flush=True)


# %%
def need(path: str | Path, command: str) -> Path:
    """`path`, if it is there; else an error that names the command which makes it."""
    if not Path(path).exists():
        reason = f"no such file or folder; make it with `{command}`, or name another"
        raise FileNotFoundError(f"{path}: {reason}")
    return Path(path)


@contextmanager
def naming(path: str | Path, mend: str) -> Iterator[None]:
    """Errors about what is read from `path` name it, and say what to do."""
    try:
        yield
    except Exception as error:
        if not (is_expected(error) or isinstance(error, KeyError | TypeError)):
            raise
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            error.filename = error.filename or str(path)
            raise  # its mend is another one
        reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
        if code := re.search(r"os error (\d+)", reason):  # told by a library in Rust
            mend = DISK_ERRORS.get(int(code[1]), mend)
        where = "" if str(path) in reason else f"{path}: "
        raise ValueError(f"{where}{reason}; {mend}") from error


# %%
def make_data(
    generator: str = "littleworld:write_corpus",
    output: Path = Path("runs/data"),
    documents: int | None = None,
    conversations: int | None = None,
    dial: str | None = None,
    seed: int | None = None,
):
    """Write a corpus: texts to train on and to validate with, conversations.

    Args:
        generator: module:function that is called with the folder and the options below
        output: folder to write to
        documents: how many texts; null leaves this and the rest to the generator
        conversations: how many conversations
        dial: size of the world
        seed: where the random numbers start
    """
    function = find_object(generator)
    options = dict(
        documents=documents, conversations=conversations, dial=dial, seed=seed
    )
    given = {key: value for key, value in options.items() if value is not None}
    if short := [
        key for key in given if key not in ("dial", "seed") and given[key] < 1
    ]:
        raise ValueError(
            f"{short[0]}={given[short[0]]} makes nothing; ask for 1 or more"
        )
    say(f"{generator} writes to {output} ...")
    try:
        function(output, **given)
    except OSError as error:
        error.filename = error.filename or str(output)  # a full disk names no file
        raise
    for path in files_in(output):
        say(f"{path}  {path.stat().st_size / 1e3:,.0f} kB")
    say("next: minillm tokenizer train")


# %%
def describe_texts(texts: list[str], near: float | None) -> None:
    """Print what is counted in these texts."""
    for name, value in summarize(texts).items():
        say(
            f"{name:16} {value if isinstance(value, (int, float)) else ' '.join(value)}"
        )
    for name, value in diversity(texts).items():
        say(f"{'distinct ' + name:16} {value:.3f}")
    if near:
        left_out = len(texts) - sum(1 for _ in deduplicate(texts, near))
        say(f"{'near duplicates':16} {left_out}, alike by {near} or more")
    for name, bits in compress(texts).items():
        say(f"{name:16} {bits:.3f} bits per byte")


def show_first(texts: list[str]) -> None:
    """Print the first three, the long ones cut."""
    say("\nthe first three texts:")
    for text in texts[:3]:
        text = text if len(text) < 300 else text[:300] + " ..."
        say("  " + text.replace("\n", "\n  "))


# %%
def inspect_data(
    source: str,
    column: str = "text",
    skip: bool = False,
    other: str | None = None,
    near: float | None = None,
):
    """Say what is in a corpus: lengths, words, repeats, how far it compresses.

    Args:
        source: file (.txt .jsonl .json .csv .parquet), folder, address or public set
        column: the column that holds the text
        skip: count bad rows instead of stopping at the first
        other: a second corpus, such as the validation file: how many texts are in both
        near: count texts that are at least so like an earlier one, such as 0.8
    """
    from tqdm import tqdm

    stream = read_texts(source, column, skip)
    texts, count, size = sample_texts(tqdm(stream, unit=" texts", disable=None))
    if len(texts) < count:
        say(f"{'in all':16} {count} texts, {size} bytes")
        say(f"{'sampled':16} {len(texts)} texts, by their digests; of these:\n")
    describe_texts(texts, near)
    if other:
        both = sum(map(set(texts).__contains__, read_texts(other, column, skip)))
        within = " are in the sample" if len(texts) < count else ""
        say(f"{'in both':16} {both} texts of {other}{within}")
    show_first(texts)


# %%
def convert_data(
    source: str,
    target: Path,
    column: str = "text",
    skip: bool = False,
    distinct: bool = False,
    near: float | None = None,
    limit: int | None = None,
):
    """Read texts in any format and write them as JSONL.

    Args:
        source: file (.txt .jsonl .json .csv .parquet), folder, address or public set
        target: the .jsonl or .jsonl.gz file to write
        column: the column that holds the text
        skip: count bad rows instead of stopping at the first
        distinct: leave out texts that came before
        near: leave out texts that are so like one that came before, such as 0.8
        limit: stop after this many texts
    """
    from itertools import islice

    from tqdm import tqdm

    texts = islice(read_texts(source, column, skip), limit)
    texts = deduplicate(texts, near) if distinct or near else texts
    rows = ({"text": text} for text in tqdm(texts, unit=" texts", disable=None))
    say(f"{target}: {write_jsonl(rows, target)} texts")


# %%
def split_data(
    source: str,
    output: Path = Path("runs/data"),
    column: str = "text",
    skip: bool = False,
    share: float = 0.01,
):
    """Read texts in any format and write train.jsonl and validation.jsonl.

    Args:
        source: file (.txt .jsonl .json .csv .parquet), folder, address or public set
        output: folder to write to
        column: the column that holds the text
        skip: count bad rows instead of stopping at the first
        share: how much is held out for validation
    """
    for name, wanted in (("train", False), ("validation", True)):
        texts = read_texts(source, column, skip)
        rows = ({"text": t} for t in texts if held_out(t, share) == wanted)
        path = output / f"{name}.jsonl"
        if not (number := write_jsonl(rows, path)):
            raise ValueError(f"{share=} leaves no text for {path}; choose another")
        say(f"{path}: {number} texts")


# %%
def train_tokenizer(
    data: str = "runs/data/train.jsonl",
    output: Path = Path("runs/tokenizer"),
    vocab_size: int = 896,
    column: str = "text",
    limit: int | None = None,
):
    """Learn a vocabulary from a corpus by byte-pair encoding.

    Args:
        data: where the texts are
        output: folder for tokenizer.json and its companions
        vocab_size: how many tokens: 3 special ones, 256 bytes, the rest merges
        column: the column that holds the text
        limit: learn from the first so many texts only
    """
    from itertools import islice

    from minillm.tokenizer import train_bpe

    texts = islice(read_texts(data_source(data), column), limit)
    tokenizer = train_bpe(texts, vocab_size, progress=sys.stderr.isatty())
    tokenizer.save_pretrained(output)
    say(f"{output}: {tokenizer.vocab_size} tokens; next: minillm pretrain")


def data_source(data: str) -> str:
    """`data`; if it is a missing default, an error that names `minillm data make`."""
    default = data.startswith("runs/")
    return str(need(data, "minillm data make")) if default else data


# %%
def encode_text(
    text: str,
    tokenizer: Path = Path("runs/tokenizer"),
    output: Path | None = None,
    column: str = "text",
):
    """Show a text as tokens: how it is cut, and the numbers. Or encode a corpus.

    Args:
        text: what to encode; with --output a file, a folder or a public set
        tokenizer: a tokenizer's folder or file
        output: write the corpus here as one array of numbers, in a .npy file
        column: the column that holds the text
    """
    from minillm.tokenizer import write_tokens

    words = open_tokenizer(tokenizer)
    if output:
        facts = write_tokens(read_texts(text, column), words, output)
        say(f"{output}: {facts['tokens']} tokens, {facts['documents']} documents")
        return
    ids = words.encode(text)
    say(" ".join(str(number) for number in ids))
    say("|".join(words.decode([number]) for number in ids))
    say(f"{len(ids)} tokens, {len(text.encode())} bytes")


# %%
def inspect_tokenizer(tokenizer: Path = Path("runs/tokenizer"), last: int = 20):
    """Say what a tokenizer holds: size, special tokens, last merges.

    Args:
        tokenizer: a tokenizer's folder or file
        last: how many of the last tokens to show
    """
    words = open_tokenizer(tokenizer)
    say(f"vocab_size       {words.vocab_size}")
    for name, number in words.special_tokens.items():
        say(f"{name:16} {number}")
    tail = range(max(0, words.vocab_size - last), words.vocab_size)
    say("the last tokens  " + " ".join(repr(words.decode([number])) for number in tail))


def open_tokenizer(path: str | Path):
    """The tokenizer at `path`, or an error that says how to make one."""
    from minillm.tokenizer import load_tokenizer

    need(path, "minillm tokenizer train")
    with naming(path, "make it again with `minillm tokenizer train`, or name another"):
        return load_tokenizer(path)


# %%
def tokenize(data: str, column: str, tokenizer, path: Path) -> Path:
    """The token file of a corpus: that at `path` if it came from these, else made anew.

    Of several processes the first one makes it, and the others wait for it.
    """
    from minillm.tokenizer import write_tokens

    if data.endswith(".npy"):
        return need(data, "minillm pretrain --data TEXTS")
    stamps = [(str(f), f.stat().st_size, f.stat().st_mtime) for f in sources_of(data)]
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


def open_corpus(data: str, column: str, tokenizer, folder: str | Path):
    """The documents of a corpus as tokens, ready to train on."""
    from minillm.pretraining import TokenFile

    path = tokenize(data, column, tokenizer, Path(folder) / "tokens.npy")
    with naming(path, "name a file that `minillm pretrain` or write_tokens made"):
        return TokenFile(path, tokenizer)


def sources_of(data: str) -> list[Path]:
    """The files behind `data`; none for a named public set."""
    return files_in(data) if Path(data).exists() else []


# %%
def model_config(preset: str, tokenizer, context: int):
    """The shape that `preset` names, with this vocabulary and room for this context."""
    from minillm.transformer import ModelConfig

    with naming(preset, "mend the file, or name a preset such as tiny"):
        longest = ModelConfig.from_preset(preset).max_position_embeddings
        return ModelConfig.from_preset(
            preset,
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=max(longest, context),
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )


# %%
def open_model(*folders: str | Path):
    """The first of `folders` that holds a model: (model, tokenizer, that folder)."""
    from minillm.tokenizer import load_tokenizer
    from minillm.transformer import Transformer

    course = Path(find_spec("minillm").origin).parent.parent
    places = [Path(f) for f in folders] + [course / f for f in folders[1:]]
    found = next((p for p in places if (p / "config.json").exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"{folders[0]}: no model there (no config.json); train one with "
            "`minillm pretrain`, or name its folder with --model"
        )
    with naming(found, "copy or train it again, or name another"):
        if not any(found.glob("*.safetensors")) and any(found.glob("*.bin")):
            raise ValueError("holds a pickle (.bin), never loaded; save as safetensors")
        model, tokenizer = Transformer.from_pretrained(found), load_tokenizer(found)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"its tokenizer has {tokenizer.vocab_size} tokens and the model only "
                f"vocab_size={model.config.vocab_size}: they do not belong together"
            )
    return model, tokenizer, found


# %%
class Checker:
    """A callback: shows samples during training, judged if a function is named."""

    def __init__(self, name: str | None = None, count: int = 20):
        self.check = find_object(name) if name else None
        self.count = count if name else 1

    def on_evaluate(self, trainer, row: dict) -> None:
        import torch

        from minillm.generation import GenerationConfig, generate

        model, tokenizer = trainer.model.eval(), trainer.tokenizer
        config = GenerationConfig(200, temperature=0.6, seed=0)
        begin, device = tokenizer.eos_token_id, model.lm_head.weight.device
        start = torch.full((self.count, 1), begin, device=device)
        with warnings.catch_warnings(action="ignore"):  # of texts that are cut short
            ids = generate(model, start, config)[:, 1:].tolist()
        texts = [tokenizer.decode(row, skip_special_tokens=True) for row in ids]
        row["sample"] = texts[0]
        say(f"\nstep {row['step']}, a sample: {texts[0][:200]}")
        if self.check:
            right = sum(bool(getattr(v, "right", v)) for v in map(self.check, texts))
            row["eval_right"] = right / self.count
            say(f"{right} of {self.count} texts are right")


# %%
def pretrain(
    config,
    data: str = "runs/data/train.jsonl",
    column: str = "text",
    tokenizer: Path = Path("runs/tokenizer"),
    preset: str = "tiny",
    validation: Path | None = None,
    checker: str | None = None,
):
    """Train a model from random weights; run again, it goes on where it stopped.

    Args:
        data: texts to learn from (any format of `minillm data`), or a token file .npy
        column: the column that holds the text
        tokenizer: a tokenizer's folder or file
        preset: the model's shape: a name such as tiny or myllm-176m, or a .json file
        validation: JSONL of held-out texts; null takes validation.jsonl beside the data
        checker: module:function that judges a text, such as littleworld:check
    """
    from minillm.pretraining import Trainer

    words = open_tokenizer(tokenizer)
    tokens = open_corpus(data_source(data), column, words, config.output_dir)
    check_device(config.device)
    model = random_model(
        model_config(preset, words, config.context_length), config.seed
    )
    validation = open_validation(validation or beside(data, "validation.jsonl"))
    judges = [Checker(checker)]
    about = {
        "command": f"minillm pretrain --data {data}",
        "data": data,
        "preset": preset,
    }
    run = Trainer(model, words, config, tokens, validation, judges, about)
    say(f"{model.num_parameters():,} parameters, {len(tokens):,} documents")
    return finish(run, "minillm sft")


# %%
def check_device(name: str) -> None:
    """Refuse a device that torch does not find here."""
    if name.split(":")[0] not in (here := ["auto", *devices()]):
        raise ValueError(f"device={name!r} is not here; there are: {', '.join(here)}")


def random_model(shape, seed: int):
    """A model of this shape with random weights, the same for the same seed."""
    import torch

    from minillm.transformer import Transformer

    torch.manual_seed(seed)
    return Transformer(shape)


def open_validation(path: Path | None):
    """Held-out documents, or None where there are none."""
    from minillm.pretraining import Validation

    if path is None:
        return None
    with naming(need(path, "minillm data make"), "each line is an object with a text"):
        return Validation.from_jsonl(path)


def finish(run, following: str) -> int:
    """Train to the end, or until Ctrl-C; say where the model is and what comes next."""
    from minillm.run_log import describe_needs, memory_needed

    say(describe_needs(memory_needed(run.model.config, run.config)))
    with naming(run.folder, "name another --output_dir"):
        stopped = run.train()["stopped"]
    if stopped:
        say("the same command goes on from there")
        return 130
    say(f"{run.folder / 'final'}: the model; next: {following}")
    return 0


# %%
class Judge:
    """A callback: asks held-out questions and has a function judge the replies."""

    def __init__(self, name: str, path: Path, limit: int = 200):
        from minillm.sft import read_conversations

        rows = list(read_conversations(need(path, "minillm data make")))
        self.judge, self.rows = find_object(name), rows[:: -(-len(rows) // limit)]

    def on_save(self, trainer, folder: Path) -> None:
        if trainer.step == trainer.config.max_steps:
            self.ask(trainer, "after")

    def ask(self, trainer, when: str) -> None:
        from minillm.sft import ChatTemplate, answer, grade

        model, words = trainer.model.eval(), trainer.tokenizer
        encode, room = ChatTemplate(words).encode, model.config.max_position_embeddings
        rows = [r for r in self.rows if len(encode(r["conversations"])[0]) <= room]
        with warnings.catch_warnings(action="ignore"):  # of replies that do not end
            replies = answer(model, words, rows)
        table = grade(rows, replies, self.judge)
        say(f"\nanswers judged right {when} training:")
        say("\n".join(f"  {kind:16} {a} of {b}" for kind, (a, b) in table.items()))


# %%
def sft(
    config,
    model: Path = Path("runs/pretrain/final"),
    data: str = "runs/data/sft_train.jsonl",
    remember: float = 0.2,
    judge: str | None = None,
):
    """Teach a trained model to answer: fine-tune it on conversations.

    Args:
        model: folder of the model to start from
        data: JSONL of conversations
        remember: texts of train.jsonl to mix in for each conversation; 0 for none
        judge: module:function that judges replies to sft_test.jsonl, before and after
    """
    from minillm.pretraining import Trainer
    from minillm.sft import SFTDataset, prepare_for_chat, read_conversations

    base, words, _ = open_model(model)
    prepare_for_chat(base, words)
    rows = read_conversations(data_source(data))
    talks = SFTDataset(rows, words, config.context_length)
    say(str(talks))
    check_device(config.device)
    about = {"command": f"minillm sft --model {model} --data {data}"}
    about |= {"data": data, "from": str(model), "documents mixed in": remember}
    dataset = with_documents(talks, data, words, remember, config.output_dir)
    validation = open_validation(beside(data, "validation.jsonl"))
    run = Trainer(base, words, config, dataset, validation, about=about)
    if judge:
        run.callbacks.append(Judge(judge, Path(data).with_name("sft_test.jsonl")))
        run.callbacks[-1].ask(run, "before")
    return finish(run, "minillm chat")


# %%
def with_documents(talks, data: str, tokenizer, share: float, folder: str | Path):
    """Conversations, mixed with `share` times as many of the base model's documents."""
    from itertools import islice

    from minillm.pretraining import TokenFile
    from minillm.sft import Mixture
    from minillm.tokenizer import write_tokens

    texts, count = beside(data, "train.jsonl"), round(share * len(talks))
    if share < 0:
        raise ValueError(f"remember={share} must be 0 or more")
    if not (texts and count):
        return talks
    path = Path(folder) / "old_documents.npy"
    write_tokens(islice(read_texts(texts), count), tokenizer, path)
    return Mixture(talks, TokenFile(path, tokenizer))


def beside(data: str, name: str) -> Path | None:
    """The file of that name in the folder of `data`, if it is there."""
    path = Path(data).with_name(name)
    return path if path.exists() else None


# %%
def generate_text(config, model: Path | None = None, prompt: str = "", count: int = 1):
    """Let a model go on with a text, shown as it comes.

    Args:
        model: the model's folder; null takes what you trained, else the shipped one
        prompt: the beginning; empty starts a new text
        count: how many continuations
    """
    from minillm.generation import stream

    folders = (
        [model] if model else ["runs/pretrain/final", "checkpoints/littleworld-base"]
    )
    net, words, folder = open_model(*folders)
    if model is None:
        say(f"({folder})")
    for number in range(count):
        seed = None if config.seed is None else config.seed + number
        say(prompt, end="")
        for piece in stream(net, words, prompt, replace(config, seed=seed)):
            say(piece, end="")
        say()


# %%
def chat(
    config,
    model: Path | None = None,
    system: str | None = None,
    base: Path = Path("runs/pretrain/final"),
):
    """Talk with a model: /help lists the commands, /quit leaves.

    Args:
        model: the model's folder; null takes what you tuned, else the shipped one
        system: a first message that says how to behave
        base: the model that /base changes to; if it is not there, the shipped one
    """
    from minillm.chat import Chat, converse

    folders = [model] if model else ["runs/sft/final", "checkpoints/littleworld-chat"]
    net, words, folder = open_model(*folders)
    say(f"({folder}; /help lists the commands, /quit leaves)")

    def other() -> Chat:
        plain, its_words, place = open_model(base, "checkpoints/littleworld-base")
        its_words.chat_template = its_words.chat_template or words.chat_template
        say(f"({place})")
        return Chat(plain, its_words, system, config)

    converse(Chat(net, words, system, config), other)


# %%
PACKAGES = "torch numpy regex safetensors jinja2 datasets tqdm tensorboard jsonargparse"
Finding = tuple[bool, str, str]  # is it well, what was found, its mend


def check_python() -> Iterable[Finding]:
    """Python's version and those of the packages that minillm needs."""
    number = platform.python_version()
    yield (
        sys.version_info >= (3, 11),
        f"Python {number}",
        "install Python 3.11 or newer",
    )
    found, missing = [], []
    for name in PACKAGES.split():
        try:
            found.append(f"{name} {version(name)}")
        except ImportError:
            missing.append(name)
    yield True, ", ".join(found), ""
    if missing:
        yield (
            False,
            f"missing: {' '.join(missing)}",
            "`pip install -e .` or `make setup`",
        )


# %%
def check_room() -> Iterable[Finding]:
    """Cores, memory, free disk, and whether this folder can be written to."""
    memory = total_memory()
    yield True, f"{os.cpu_count()} cores, {platform.machine()}", ""
    if memory:
        mend = "close other programs, or lower per_device_train_batch_size"
        yield memory > 3e9, f"{memory / 1e9:.0f} GB of memory", mend
    free = shutil.disk_usage(".").free
    yield free > 2e9, f"{free / 1e9:.0f} GB of disk free here", "free 2 GB or more"
    try:
        with write_atomic(".minillm-doctor") as temporary:
            temporary.write_text("")
        os.remove(".minillm-doctor")
        yield True, "this folder can be written to", ""
    except OSError as error:
        mend = "work in a folder of your own"
        yield False, f"this folder cannot be written to: {error.strerror}", mend


def total_memory() -> int:
    """Bytes of memory in this machine; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 0


# %%
def small_computation(device: str, dtype) -> dict:
    """A product, an attention, two training steps: results as float64 on the CPU."""
    import torch

    from minillm.attention import attend

    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 256, 256, generator=draw).to(device, dtype)
    heads = torch.randn(3, 2, 4, 32, 16, generator=draw).to(device, dtype)
    ids = torch.randint(64, (2, 17), generator=draw).to(device)
    steps = two_steps(ids, dtype)
    results = {"product": a @ b, "attention": attend(*heads), "step": steps}
    return {name: value.double().cpu() for name, value in results.items()}


def two_steps(ids, dtype):
    """The losses of the first two training steps of a small model, as one tensor."""
    import torch

    from minillm.optimization import AdamW, cross_entropy
    from minillm.transformer import ModelConfig, Transformer

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Transformer(ModelConfig(64, 32, 64, 2, 4)).to(ids.device, dtype)
    optimizer, losses = AdamW(model.parameters(), lr=0.01), []
    for _ in range(2):
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


# %%
def check_devices(tolerance: float = 1e-3) -> Iterable[Finding]:
    """Each device in float32 against the CPU in float64, by relative difference."""
    import torch

    right = small_computation("cpu", torch.float64)
    for device in devices():
        here = small_computation(device, torch.float32)
        for name, value in here.items():
            off = ((value - right[name]).norm() / right[name].norm()).item()
            what = f"{device}: {name} differs from float64 by {off:.0e}"
            mend = f"use --device cpu, and update the driver or torch for {device}"
            yield off < tolerance, what, mend


def devices() -> list[str]:
    """What torch can compute on here."""
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return ["cpu", *(name for name, yes in there.items() if yes)]


# %%
def check_speed() -> Iterable[Finding]:
    """What this machine trains in five minutes and in a night, from about 2 seconds."""
    from minillm.optimization import precision_speeds
    from minillm.pretraining import TrainingConfig
    from minillm.transformer import ModelConfig, Transformer, count_flops

    device, shape = devices()[-1], ModelConfig.from_preset("tiny")
    model = Transformer(shape).to(device)
    speeds = precision_speeds(model, rounds=2)
    rates = ", ".join(f"{name} {rate / 1e3:.0f}k" for name, rate in speeds.items())
    yield True, f"{device} trains the default model, tokens a second: {rates}", ""
    rate = max(speeds.values())
    run = TrainingConfig(**DEFAULTS["pretrain"])
    tokens = run.max_steps * run.per_device_train_batch_size * run.context_length
    minutes = tokens * run.gradient_accumulation_steps / rate / 60
    mend = "lower --max_steps, or use a machine with a GPU (Colab)"
    yield minutes < 30, f"`minillm pretrain` takes about {minutes:.0f} minutes", mend
    compute = (
        3 * count_flops(shape, 256) * rate * 8 * 3600
    )  # backward costs twice forward
    size = (compute / (6 * 20)) ** 0.5  # 6 FLOPs a parameter and token, 20 tokens each
    night = f"{size / 1e6:.0f}M parameters on {20 * size / 1e6:.0f}M tokens"
    yield True, f"five minutes: {rate * 3e-4:.1f}M tokens; a night: {night}", ""


def doctor() -> int:
    """Check this machine: versions, room, right results, what it can train."""
    bad = 0
    for check in (check_python, check_room, check_devices, check_speed):
        for well, what, mend in check():
            say(f"{'ok  ' if well else 'MEND'}  {what}" + ("" if well else f": {mend}"))
            bad += not well
    say("all is well" if not bad else f"{bad} to mend")
    return min(bad, 1)


# %%
COMMANDS: dict[str, tuple[Callable, str]] = {
    "data make": (make_data, ""),
    "data inspect": (inspect_data, ""),
    "data convert": (convert_data, ""),
    "data split": (split_data, ""),
    "tokenizer train": (train_tokenizer, ""),
    "tokenizer encode": (encode_text, ""),
    "tokenizer inspect": (inspect_tokenizer, ""),
    "pretrain": (pretrain, "minillm.pretraining:TrainingConfig"),
    "generate": (generate_text, "minillm.generation:GenerationConfig"),
    "sft": (sft, "minillm.pretraining:TrainingConfig"),
    "chat": (chat, "minillm.generation:GenerationConfig"),
    "doctor": (doctor, ""),
}
DEFAULTS = {  # where a command's settings differ from its dataclass
    "pretrain": {},
    "generate": {"temperature": 0.6},
    "sft": {
        "output_dir": "runs/sft",
        "max_steps": 800,
        "per_device_train_batch_size": 8,
        "context_length": 256,
        "learning_rate": 4e-3,
        "warmup_steps": 20,
        "weight_decay": 0.05,
    },
    "chat": {"max_new_tokens": 160, "temperature": 0.6},
}


# %%
def make_parser(name: str):
    """The argument parser of one command, made from its function and its dataclass."""
    import jsonargparse

    function, config = COMMANDS[name]
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"minillm {name}",
        description=function.__doc__.partition("Args:")[0],
        allow_abbrev=False,
        exit_on_error=False,
        parser_mode="json",
    )
    action = jsonargparse.ActionConfigFile
    parser.add_argument("--config", action=action, help="JSON file of these options")
    parser.add_function_arguments(function, skip={"config"}, as_positional=True)
    if config:
        parser.add_class_arguments(find_object(config))
        parser.set_defaults(DEFAULTS.get(name, {}))
    return parser


# %%
def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """["data", "make", "--seed", "1"] -> ("data make", ["--seed", "1"])."""
    for length in (2, 1):
        if (name := " ".join(arguments[:length])) in COMMANDS:
            return name, arguments[length:]
    given = " ".join(arguments[:2])
    there = ", ".join(commands_of(arguments[0]) or COMMANDS)
    raise ValueError(f"no command {given!r}; there are: {there}")


def commands_of(group: str) -> list[str]:
    """The commands whose first word is `group`."""
    return [name for name in COMMANDS if name.split()[0] == group]


# %%
def check_settings_file(path: str, name: str) -> None:
    """A file for --config must be there, and hold one JSON object."""
    command = f"minillm {name} --print_config"
    with naming(need(path, command), f"write it as `{command}` prints it"):
        if not isinstance(json.loads(Path(path).read_text(encoding="utf-8")), dict):
            raise ValueError("not a JSON object")


def plainly(error: ArgumentError) -> str:
    """A parser's complaint about a value, as `--max_steps=many is not int`."""
    found = re.match(r'Parser key "(\w+)":.*value: (\S+)', str(error), re.DOTALL)
    if not found:
        return str(error)
    kinds = dict.fromkeys(re.findall(r"<class '(\w+)'>", str(error).split("Given")[0]))
    wanted = " or ".join("null" if kind == "NoneType" else kind for kind in kinds)
    return f"--{found[1]}={found[2]} is not {wanted or 'of the right type'}"


def run_command(name: str, options: list[str]) -> int:
    """Parse the options of a command and call its function."""
    if "--config" in options[:-1]:
        check_settings_file(options[options.index("--config") + 1], name)
    function, config = COMMANDS[name]
    try:
        values = make_parser(name).parse_args(options).as_dict()
    except ArgumentError as error:
        raise ValueError(f"{plainly(error)}; see `minillm {name} --help`") from error
    values.pop("config")
    if config:
        kind = find_object(config)
        settings = {
            f.name: values.pop(f.name) for f in fields(kind) if f.name in values
        }
        values["config"] = kind(**settings)
    return function(**values) or 0


# %%
HELP = ("-h", "--help", "help")


def overview(names: Iterable[str]) -> str:
    """What `minillm --help` prints: a line for each command."""
    lines = [
        f"  {name:18} {COMMANDS[name][0].__doc__.splitlines()[0]}" for name in names
    ]
    head = "usage: minillm COMMAND [options]      minillm COMMAND --help\n"
    return "\n".join([head, *lines, "\n  --traceback        show where an error arose"])


# %%
DISK_ERRORS = {
    errno.EACCES: "choose a folder of your own, or change its permissions",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.ENOSPC: "free some space, or choose another disk",
}
MENDS = DISK_ERRORS | {
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "a part of this path is a file",
    errno.EISDIR: "this is a folder, where a file belongs",
}


def asks_for_overview(arguments: list[str]) -> Iterable[str]:
    """The commands to list if `arguments` ask for help on all or on a group."""
    if not arguments or arguments[0] in HELP:
        return COMMANDS
    if " ".join(arguments[1:]) in HELP and arguments[0] not in COMMANDS:
        return commands_of(arguments[0]) or COMMANDS
    return ()


def explain(error: BaseException) -> str:
    """An error in one line: what is wrong with which file, and what to do."""
    if isinstance(error, OSError) and error.strerror:
        mend = MENDS.get(error.errno, "")
        parts = [str(error.filename or ""), error.strerror, mend]
        return ": ".join(part for part in parts if part)
    return " ".join(str(error).split()) or type(error).__name__


def is_expected(error: Exception) -> bool:
    """Whether an error is about what was given, and not a fault in this program."""
    names = {"SafetensorError", "OutOfMemoryError", "TemplateError"}
    about_input = ValueError | OSError | ArithmeticError | MemoryError
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return isinstance(error, about_input) or not names.isdisjoint(kinds)


# %%
def show_warning(message: Warning, *details: object) -> None:
    """A warning in one line, without the place in the code that it comes from."""
    print(f"\nminillm: {message}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code: 2 for an error, told in one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    developer = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if names := asks_for_overview(arguments):
        print(overview(names))
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return run_command(*split_command(arguments))
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nminillm: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if developer or not is_expected(error):
            raise
        print(f"minillm: {explain(error)}", file=sys.stderr)
        return 2
