"""The model card of a checkpoint folder."""

import platform
from pathlib import Path

import numpy
import torch
from huggingface_hub import ModelCardData

from minillm.support.files import write_atomic

CARD = """---
{head}
---
# {title}

Trained from scratch, on the data and with the settings below.

| | |
|--|--|
{table}

## Made by

    {command}

## Use

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("this/folder")
    tokenizer = AutoTokenizer.from_pretrained("this/folder")
"""


def write_model_card(
    folder: str | Path,
    facts: dict,
    title: str = "A language model trained with minillm",
    command: str = "minillm pretrain",
) -> str:
    """Write README.md, the model card of a checkpoint folder; return its text.

    `facts`: what its reader needs to know (data, seed, tokens, loss, floor), a table
    row each, in order. Nothing in it depends on the machine's folders or clock.
    """
    rows = {**facts, **{f"version of {k}": v for k, v in versions().items()}}
    text = CARD.format(
        head=ModelCardData(library_name="transformers", pipeline_tag="text-generation"),
        title=title,
        table="\n".join(
            f"| {name} | {as_cell(value)} |" for name, value in rows.items()
        ),
        command=command,
    )
    with write_atomic(Path(folder) / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return text


def versions() -> dict[str, str]:
    """The versions that decide whether a run can be repeated to the last bit."""
    release = torch.__version__.split("+")[0]  # without "+cpu", "+cu130"
    python, numbers = platform.python_version(), numpy.__version__
    return {"python": python, "torch": release, "numpy": numbers}


def as_cell(value: object) -> str:
    """A value as the card shows it: 1,234 or 0.1234, and no broken table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
