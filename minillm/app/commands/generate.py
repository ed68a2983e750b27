"""`minillm generate`: a model continues a text."""

from dataclasses import replace
from pathlib import Path

from minillm.app.console import say
from minillm.app.models import open_model
from minillm.generation import GenerationConfig, stream

DEFAULTS = {"temperature": 0.6}


def generate_text(
    model: Path | None = None, prompt: str = "", count: int = 1, **settings
):
    """Let a model continue a text, shown as it is generated.

    Args:
        model: the model's folder; null takes what you trained, else the shipped one
        prompt: the beginning; empty starts a new text
        count: how many continuations
    """
    config = GenerationConfig(**settings)
    default = ["runs/pretrain/final", "checkpoints/littleworld-base"]
    opened, tokenizer, folder = open_model(*([model] if model else default))
    if model is None:
        say(f"({folder})")
    for number in range(count):
        seed = None if config.seed is None else config.seed + number
        say(prompt, end="")
        for piece in stream(opened, tokenizer, prompt, replace(config, seed=seed)):
            say(piece, end="")
        say()
