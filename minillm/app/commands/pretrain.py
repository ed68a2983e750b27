"""`minillm pretrain`: a model from random weights."""

from pathlib import Path

import torch

from minillm.app import inputs, models
from minillm.app.callbacks import Checker
from minillm.app.console import say
from minillm.app.errors import naming
from minillm.app.memory import describe_needs, memory_needed
from minillm.app.plugins import find_object
from minillm.app.training import Run, RunConfig
from minillm.transformer import Transformer


def pretrain(
    data: str = "runs/data/train.jsonl",
    column: str = "text",
    tokenizer: Path = Path("runs/tokenizer"),
    preset: str = "tiny",
    validation: Path | None = None,
    checker: str | None = None,
    **settings,
):
    """Train a model from random weights; run it again to resume.

    Args:
        data: texts to learn from (any format of `minillm data`), or a token file .npy
        column: the column that holds the text
        tokenizer: a tokenizer's folder or file
        preset: the model's shape: a name such as tiny or myllm-176m, or a .json file
        validation: JSONL of held-out texts; null takes validation.jsonl beside the data
        checker: module:function that judges a text, such as littleworld:check
    """
    config = RunConfig(**settings)
    opened, source = inputs.open_tokenizer(tokenizer), inputs.data_source(data)
    tokens = inputs.open_corpus(source, column, opened, config.output_dir)
    shape = models.model_config(preset, opened, config.context_length)
    torch.manual_seed(config.seed)
    model = Transformer(shape)
    held_out = validation or inputs.beside(data, "validation.jsonl")
    measured = models.open_validation(held_out)
    callbacks = [Checker(opened, find_object(checker) if checker else None)]
    command = f"minillm pretrain --data {data}"
    about = {"command": command, "data": data, "preset": preset}
    run = Run(model, opened, config, tokens, measured, callbacks, about)
    say(f"{model.num_parameters():,} parameters, {len(tokens):,} documents")
    return finish(run, "minillm sft")


def finish(run: Run, following: str) -> int:
    """Train to the end, or until Ctrl-C; say where the model is and what comes next."""
    say(describe_needs(memory_needed(run.model.config, run.config)))
    with naming(run.folder, "name another --output_dir"):
        stopped = run.train()["stopped"]
    if stopped:
        say("run the same command to resume")
        return 130
    say(f"{run.folder / 'final'}: the model; next: {following}")
    return 0
