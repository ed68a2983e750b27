"""A training run of seconds, for the tests of the trainer and of its checkpoints."""

import functools
import json
import os
import random
import signal
from pathlib import Path

import torch

from minillm import pretraining, relay
from minillm.app.training import Run, RunConfig
from minillm.pretraining import Validation
from minillm.support import checkpoints
from minillm.support.token_files import TokenFile, write_tokens
from minillm.tokenizer import train_bpe
from minillm.transformer import ModelConfig, Transformer

TIMES = ("tokens_per_second", "flops_per_second", "memory")


def make_texts(count, seed=0):
    """Small stories of different lengths."""
    dice, texts = random.Random(seed), []
    for _ in range(count):
        name = dice.choice("Tom Ann Sue Max".split())
        thing = dice.choice("kite ball".split())
        middle = f"{name} had a {thing}. {name} lost the {thing}. "
        texts.append(middle * dice.randint(1, 3) + f"So {name} was sad.")
    return texts


@functools.cache
def tokenizer():
    return train_bpe(make_texts(100), 280)


def token_file(folder, count=60, seed=0):
    path = Path(folder) / f"train-{count}-{seed}"
    if not path.with_name(path.name + ".npy").exists():
        write_tokens(make_texts(count, seed), tokenizer(), path)
    return TokenFile(path, tokenizer())


def make_model(seed=0, **changes):
    torch.manual_seed(seed)
    shape = dict(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return Transformer(ModelConfig(tokenizer().vocab_size, **shape | changes))


def make_trainer(
    folder, data=None, model=None, callbacks=(), validation=8, parts=None, **changes
):
    """A `Run` in folder/run; `parts`: another loss, count or collate."""
    settings = dict(
        output_dir=str(Path(folder) / "run"), max_steps=12, save_steps=4, eval_steps=4,
        per_device_train_batch_size=2, gradient_accumulation_steps=2,
        context_length=48, warmup_steps=2, logging_steps=3, precision="float32",
        learning_rate=1e-2, device="cpu",
    )  # fmt: skip
    loss = {"loss": pretraining.next_token_loss}  # as patched by `train_until_killed`
    return Run(
        model or make_model(dropout=0.1), tokenizer(),
        RunConfig(**settings | changes), data or token_file(folder),
        Validation(make_texts(validation, seed=9)) if validation else None, callbacks,
        **loss | (parts or {}),
    )  # fmt: skip


def result(folder):
    """What must be the same in a run that was killed and one that was not."""
    rows = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(row) for row in rows]
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    return rows, (Path(folder) / "run/final/model.safetensors").read_bytes()


# Where the power can fail: in a pass, before the gradients are checked, with a file
# half written, before a checkpoint is renamed, while an old one is deleted.
PLACES = (
    (pretraining, "next_token_loss"),
    (pretraining, "clip_grad_norm"),
    (relay, "save_file"),
    (checkpoints, "sha256_of"),
    (checkpoints, "flush_to_disk"),
    (checkpoints, "remove"),
)


def train_until_killed(folder, fuse, only=None):
    """Train; SIGKILL this process at the `fuse`-th call of PLACES (or `only` one)."""
    torch.set_num_threads(1)
    os.environ["TQDM_DISABLE"] = "1"

    def arm(module, name):
        function = getattr(module, name)

        def bomb(*arguments, **options):
            nonlocal fuse
            fuse -= 1
            if fuse == 0:
                if name == "save_file":
                    Path(arguments[1]).write_bytes(b"\x08half a file")
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        setattr(module, name, bomb)

    for module, name in PLACES:
        if only in (None, name):
            arm(module, name)
    make_trainer(folder).train()


def train_as(rank, world_size, port, folder, changes):
    """One of the processes that torchrun would start."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TQDM_DISABLE": "1",
    }  # fmt: skip
    make_trainer(folder, model=make_model(), **changes).train()
