"""How many tokens a second does the course's loop write, beside transformers?

    python benchmarks/generation.py            two shapes, one thread, batch 1
    python benchmarks/generation.py --save     and keep the table in generation.json

Both run in one process with the same weights and write the same tokens, greedily and
with a cache: ours is `generate` of chapter 07, a loop that calls the model for every
token; theirs is `transformers.generate`. They take turns in every round, and each round
gives a ratio; the median of the ratios counts, because a ratio moves less than a time
on a busy machine. Seconds are those of the processor. Chapter 07 prints the table.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from model import TheirLlama  # noqa: E402

from minillm.generation import GenerationConfig, generate  # noqa: E402
from minillm.transformer import ModelConfig, Transformer  # noqa: E402

TABLE = Path(__file__).with_suffix(".json")
SHAPES = {
    "tiny": ModelConfig.from_preset("tiny"),
    "512 x 8": ModelConfig(4096, 512, 1376, 8, 8, max_position_embeddings=512),
}
PROMPT = 16


def ways(config: ModelConfig, new_tokens: int) -> dict[str, Callable]:
    """Ours and theirs, as functions of nothing that return the same ids."""
    torch.manual_seed(0)
    ours = Transformer(config).eval()
    theirs = TheirLlama(ours).model.eval()
    ids = torch.randint(3, config.vocab_size, (1, PROMPT))
    greedy = GenerationConfig(new_tokens, do_sample=False, eos_token_id=())
    options = dict(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
    options |= dict(attention_mask=torch.ones_like(ids), eos_token_id=None)
    return {
        "ours": lambda: generate(ours, ids, greedy),
        "theirs": lambda: theirs.generate(ids, **options),
    }


def measure(name: str, config: ModelConfig, new_tokens: int, rounds: int) -> dict:
    """Tokens a second of both, and the median of the rounds' ratios."""
    works = ways(config, new_tokens)
    assert torch.equal(*(work() for work in works.values())), "not the same tokens"
    times = {who: [] for who in works}
    for _ in range(rounds):
        for who, work in works.items():
            start = time.process_time()
            work()
            times[who].append(time.process_time() - start)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    speeds = {
        who: round(new_tokens / statistics.median(spent))
        for who, spent in times.items()
    }
    return {"shape": name, **speeds, "ratio": round(statistics.median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name, config in SHAPES.items():
        rows.append(measure(name, config, arguments.new_tokens, arguments.rounds))
        print(*(f"{value!s:>12}" for value in rows[-1].values()), flush=True)
    if arguments.save:
        about = dict(
            processor=torch.backends.cpu.get_cpu_capability(),
            threads=arguments.threads,
            torch=torch.__version__.split("+")[0],
            new_tokens=arguments.new_tokens,
            rows=rows,
        )
        TABLE.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
