"""A model's config.json and tensors, read strictly: nothing is skipped in silence."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

REQUIRED = {  # no default that all folders share, so a file must say them
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "rms_norm_eps", "tie_word_embeddings",
}  # fmt: skip
INERT = {  # says nothing about what is computed
    "architectures", "dtype", "max_window_layers", "sliding_window", "torch_dtype",
    "transformers_version", "use_cache",
}  # fmt: skip
ONLY = {  # the one value for which there is code
    "hidden_act": "silu", "attention_dropout": 0.0, "pretraining_tp": 1,
    "use_sliding_window": False,
}  # fmt: skip


def read_fields(raw: Mapping, known: Collection[str], source: str | Path) -> dict:
    """The `known` fields in a config.json; ValueError names what is wrong in it.

    A field is known, changes nothing (INERT), or has the only value that is
    supported (ONLY); those in REQUIRED must be there.
    """
    raw = read_rope({k: v for k, v in raw.items() if not k.startswith("_")})
    if missing := sorted(REQUIRED - raw.keys()):
        raise ValueError(f"{source}: {missing[0]} is missing; the model needs it")
    if any(kind != "full_attention" for kind in raw.pop("layer_types", None) or []):
        raise ValueError(f"{source}: layer_types must all be 'full_attention'")
    for name in sorted(raw.keys() - INERT - set(known)):
        if name not in ONLY:
            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]}?" if near else "there is no code for it"
            raise ValueError(f"{source}: unknown field {name}; {fix}")
        if raw[name] not in (ONLY[name], None):
            raise ValueError(f"{source}: {name}={raw[name]!r} must be {ONLY[name]!r}")
    return {name: raw[name] for name in known if name in raw}


def read_rope(raw: dict) -> dict:
    """`rope_parameters`, as transformers 5 writes it, -> rope_theta, rope_scaling."""
    scaling = dict(raw.pop("rope_parameters", None) or raw.get("rope_scaling") or {})
    if theta := scaling.pop("rope_theta", None):
        raw["rope_theta"] = theta
    plain = scaling.get("rope_type", scaling.get("type", "default")) == "default"
    raw["rope_scaling"] = None if plain else scaling
    return raw


def check_tensors(found: Mapping, wanted: Mapping, source: str | Path) -> None:
    """ValueError names the first tensor that is missing, unwanted or misshapen."""
    for name in sorted(wanted.keys() ^ found.keys()):
        fault = "is missing" if name in wanted else "has no place in this model"
        fix = "does config.json belong to these weights?"
        raise ValueError(f"{source}: tensor {name} {fault}; {fix}")
    for name, tensor in found.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, "
                f"config.json asks for {tuple(wanted[name].shape)}"
            )
