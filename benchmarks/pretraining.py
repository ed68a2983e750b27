"""Whole training steps: how many tokens are learned a second, beside other trainers?

    python benchmarks/pretraining.py               two shapes, one thread
    python benchmarks/pretraining.py --shapes 256x6x256 --rounds 3 --threads 2

Ours is the trainer of chapter 09 with everything on: documents packed behind a mask,
gradients clipped, the rate set, losses counted. Beside it are loops as nanoGPT and
most scripts around transformers' Llama have them: rows cut from one line of tokens, no
mask, torch's fused AdamW. Each in its default (float32) and under bf16 autocast, and
each in a process of its own, because our trainer sets how the C library keeps memory.
They take turns in every round; the median of the rounds' ratios is printed, because a
ratio moves less than a time on a busy machine, and CPU seconds are counted, not the
clock's.
Padding does not count as a token. Then a table: where the time of our step goes, and
what part of one large matrix product's FLOP/s the whole reaches.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from model import GPT, TheirLlama, loss_of
from torch import nn

from minillm.attention import document_mask
from minillm.optimization import autocast, clip_grad_norm, cross_entropy
from minillm.pretraining import Batches, Trainer, TrainingConfig, count_labels
from minillm.transformer import ModelConfig, Transformer, count_flops

VOCAB = 4096


class Documents:
    """Random documents of 30 to 120 tokens: what is in them costs no time."""

    def __init__(self, count: int = 4000):
        self.random = np.random.default_rng(0)
        self.lengths = self.random.integers(30, 120, count)
        self.tokens = self.random.integers(0, VOCAB, 200)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens[: self.lengths[i]], self.tokens[1 : self.lengths[i] + 1]


def our_steps(
    config: ModelConfig, rows: int, context: int, precision: str
) -> tuple[Callable[[], int], Trainer]:
    """A function that trains one step and returns its tokens, and the trainer."""
    settings = TrainingConfig(10**6, rows, context_length=context, precision=precision)
    batches = Batches(Documents(), rows, context)
    trainer = Trainer(Transformer(config), settings, batches)

    def step() -> int:
        before = trainer.progress.tokens
        trainer.train_step()
        return trainer.progress.tokens - before

    return step, trainer


def plain_steps(
    model: nn.Module, rows: int, context: int, precision: str
) -> Callable[[], int]:
    """The same for a loop over rows that are cut from one line of tokens."""
    line = np.random.default_rng(0).integers(0, VOCAB, 10**6).astype(np.uint16)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )

    def step() -> int:
        starts = torch.randint(len(line) - context - 1, (rows,)).tolist()
        ids = np.stack([line[at : at + context + 1].astype(np.int64) for at in starts])
        loss = loss_of(model, torch.from_numpy(ids), precision)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()
        return rows * context

    return step


def make_steps(
    name: str, config: ModelConfig, rows: int, context: int, precision: str
) -> Callable[[], int]:
    """The step of the contender of this name."""
    torch.manual_seed(0)
    if name == "ours":
        return our_steps(config, rows, context, precision)[0]
    model = GPT(config) if name == "nanoGPT" else TheirLlama(Transformer(config))
    return plain_steps(model.train(), rows, context, precision)


def serve(pipe, threads: int, *contender) -> None:
    """In a process of its own: train for some CPU seconds whenever asked."""
    torch.set_num_threads(threads)
    step = make_steps(*contender)
    step()  # warm
    while seconds := pipe.recv():
        start, tokens = time.process_time(), 0
        while time.process_time() - start < seconds:
            tokens += step()
        pipe.send(tokens / (time.process_time() - start))


def rates(contenders: dict[str, tuple], rounds: int) -> dict[str, list[float]]:
    """Tokens a second of each, a list over rounds in which they take turns."""
    start, pipes = multiprocessing.get_context("spawn"), {}
    for name, contender in contenders.items():
        pipes[name], theirs = start.Pipe()
        given = (theirs, torch.get_num_threads(), *contender)
        start.Process(target=serve, args=given, daemon=True).start()
    found = {name: [] for name in pipes}
    for turn in range(rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(0.8)
            speed = pipe.recv()
            if turn > 0:  # the first makes the model, and warms it
                found[name].append(speed)
    for pipe in pipes.values():
        pipe.send(0)
    return found


def shares(run: Trainer, rounds: int = 6) -> dict[str, float]:
    """Where the time of our step goes: the median CPU seconds of its parts."""
    parts, clock = {}, time.process_time
    precision, weights = run.progress.precision, list(run.model.parameters())

    def note(name: str, start: float) -> float:
        parts.setdefault(name, []).append(clock() - start)
        return clock()

    for _ in range(rounds):
        start = clock()
        batch = next(run.batches)
        start = note("draw the batch", start)
        mask = document_mask(batch["document_ids"])
        start = note("its mask", start)
        with autocast("cpu", precision):
            ids, places = batch["input_ids"], batch["position_ids"]
            hidden = run.model(ids, mask=mask, position_ids=places)
            start = note("forward", start)
            logits = hidden.detach().requires_grad_()
            nats = cross_entropy(logits, batch["labels"], reduction="none")
            (nats.sum() / count_labels(batch)).backward()
        start = note("loss, and its gradient", start)
        run.optimizer.zero_grad()
        start = note("clear the gradients", start)
        hidden.backward(logits.grad)
        start = note("backward", start)
        clip_grad_norm(weights, 1.0)
        start = note("clip", start)
        run.optimizer.step()
        note("AdamW", start)
    return {name: statistics.median(spent[1:]) for name, spent in parts.items()}


def ceiling(precision: str, size: int = 1024) -> float:
    """FLOP a second of one large matrix product, the best of many."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    best = float("inf")
    with autocast("cpu", "medium" if precision == "medium" else "float32"):
        for _ in range(20):
            start = time.process_time()
            a @ b
            best = min(best, time.process_time() - start)
    return 2 * size**3 / best


def compare(width: int, layers: int, context: int, rows: int, rounds: int) -> None:
    heads = width // 64
    config = ModelConfig(
        VOCAB, width, round(width * 8 / 3 / 32) * 32, layers, heads,
        max_position_embeddings=context,
    )  # fmt: skip
    print(f"\nhidden {width}, {layers} layers, {rows} rows of {context}, vocab {VOCAB}")
    ways = [("ours", p) for p in ("float32", "medium", "bf16")]
    ways += [(n, p) for p in ("float32", "bf16") for n in ("nanoGPT", "transformers")]
    contenders = {
        f"{name}, {precision}": (name, config, rows, context, precision)
        for name, precision in ways
    }
    found = rates(contenders, rounds)
    own = [name for name in found if name.startswith("ours")]
    ours = max(own, key=lambda name: statistics.median(found[name]))
    for name, speeds in found.items():
        ratios = [a / b for a, b in zip(found[ours], speeds, strict=True)]
        print(
            f"  {name:28}{statistics.median(speeds):9,.0f} tokens/s"
            f"{statistics.median(ratios):8.2f}x slower than our best"
        )
    precision = ours.partition(", ")[2]
    run = our_steps(config, rows, context, precision)[1]
    work = 3 * count_flops(config, context) * statistics.median(found[ours])
    top = ceiling(precision)
    print(
        f"  our best: {precision}, {work / 1e9:.0f} GFLOP/s, "
        f"{work / top:.0%} of one large product ({top / 1e9:.0f})"
    )
    spent = shares(run)
    total = sum(spent.values())
    for name, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"    {name:26}{1000 * seconds:8.1f} ms{seconds / total:8.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["256x6x256", "512x8x512"])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    for shape in arguments.shapes:
        width, layers, context = map(int, shape.split("x"))
        compare(width, layers, context, arguments.rows, arguments.rounds)
    print("\nthe last column above 1: so many times slower than ours; CPU seconds")


if __name__ == "__main__":
    main()
