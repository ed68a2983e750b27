"""What a command is given, opened: models, their shapes, held-out documents."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from minillm.app.errors import naming, need
from minillm.pretraining import Validation
from minillm.tokenizer import load_tokenizer
from minillm.transformer import ModelConfig, Transformer


def open_validation(path: Path | None):
    """Held-out documents, or None where there are none."""
    if path is None:
        return None
    need(path, "minillm data make")
    with naming(path, "each line must be an object with a text"):
        return Validation.from_jsonl(path)


def model_config(preset: str, tokenizer, context: int):
    """The shape that `preset` names, with this vocabulary and room for this context."""
    with naming(preset, "fix the file, or name a preset such as tiny"):
        shape = ModelConfig.from_preset(preset, vocab_size=tokenizer.vocab_size)
    longest, end = max(shape.max_position_embeddings, context), tokenizer.eos_token_id
    special = dict(
        bos_token_id=end, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    return replace(shape, max_position_embeddings=longest, **special)


def open_model(*folders: str | Path):
    """The first of `folders` that holds a model: (model, tokenizer, that folder)."""
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
            raise ValueError("pickles (.bin) are never loaded: save as safetensors")
        model, tokenizer = Transformer.from_pretrained(found), load_tokenizer(found)
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"its tokenizer has {tokenizer.vocab_size} tokens and the model only "
                f"vocab_size={model.config.vocab_size}: they do not belong together"
            )
    return model, tokenizer, found
