"""`minillm chat`: a conversation in the terminal."""

from pathlib import Path

from minillm.app.console import say
from minillm.app.models import open_model
from minillm.app.terminal import converse
from minillm.chat import Chat
from minillm.generation import GenerationConfig

DEFAULTS = {"max_new_tokens": 160, "temperature": 0.6}


def chat(
    model: Path | None = None,
    system: str | None = None,
    base: Path = Path("runs/pretrain/final"),
    **settings,
):
    """Talk with a model: /help lists the commands, /quit leaves.

    Args:
        model: the model's folder; null takes what you tuned, else the shipped one
        system: a first message that says how to behave
        base: the model that /base changes to; if it is missing, the shipped one
    """
    config = GenerationConfig(**settings)
    default = ["runs/sft/final", "checkpoints/littleworld-chat"]
    opened, tokenizer, folder = open_model(*([model] if model else default))
    say(f"({folder}; /help lists the commands, /quit leaves)")

    def other() -> Chat:
        plain, its, place = open_model(base, "checkpoints/littleworld-base")
        its.chat_template = its.chat_template or tokenizer.chat_template
        say(f"({place})")
        return Chat(plain, its, system, config)

    converse(Chat(opened, tokenizer, system, config), other)
