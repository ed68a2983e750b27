"""What `pretrain` and `sft` measure beside the loss: samples, and judged answers."""

import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from minillm.app.console import say
from minillm.app.errors import need
from minillm.generation import GenerationConfig, generate
from minillm.sft import ChatTemplate, answer, grade
from minillm.support.conversations import read_conversations


class Checker:
    """A callback: shows a sample at each evaluation; `check(text)` judges `count`."""

    def __init__(self, tokenizer, check: Callable | None = None, count: int = 20):
        self.tokenizer, self.check = tokenizer, check
        self.count = count if check else 1

    def on_evaluate(self, trainer, row: dict) -> None:
        texts = self.sample(trainer.model)
        row["sample"] = texts[0]
        say(f"\nstep {row['step']}, a sample: {texts[0][:200]}")
        if self.check:
            right = sum(bool(getattr(v, "right", v)) for v in map(self.check, texts))
            row["eval_right"] = right / self.count
            say(f"{right} of {self.count} texts are right")

    def sample(self, model) -> list[str]:
        """Texts from an empty beginning, the same for the same weights."""
        config = GenerationConfig(200, temperature=0.6, seed=0)
        device = next(model.parameters()).device
        start = torch.full((self.count, 1), self.tokenizer.eos_token_id, device=device)
        with warnings.catch_warnings(action="ignore"):  # of texts that are cut short
            ids = generate(model.eval(), start, config)[:, 1:].tolist()
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids]


class Judge:
    """A callback: held-out questions after training; `judge(row, reply)` decides."""

    def __init__(self, tokenizer, judge: Callable, path: Path, limit: int = 200):
        rows = list(read_conversations(need(path, "minillm data make")))
        self.tokenizer, self.judge = tokenizer, judge
        self.rows = rows[:: -(-len(rows) // limit)]

    def on_train_end(self, trainer) -> None:
        if not trainer.stopping:
            self.ask(trainer.model, "after")

    def ask(self, model, when: str) -> dict[str, tuple[int, int]]:
        """Print and return how many replies are right, by kind and under "all"."""
        encode = ChatTemplate(self.tokenizer).encode
        room = model.config.max_position_embeddings
        rows = [r for r in self.rows if len(encode(r["conversations"])[0]) <= room]
        with warnings.catch_warnings(action="ignore"):  # of replies that do not end
            replies = answer(model.eval(), self.tokenizer, rows)
        table = grade(rows, replies, self.judge)
        say(f"\nanswers judged right {when} training:")
        say("\n".join(f"  {kind:16} {a} of {b}" for kind, (a, b) in table.items()))
        return table
