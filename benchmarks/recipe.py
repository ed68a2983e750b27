"""Which settings of the default run matter, and what does more of each buy?

    python benchmarks/recipe.py                    all runs that recipe.json lacks
    python benchmarks/recipe.py "seed 1" cosine    these runs, again
    python benchmarks/recipe.py --table            no runs: print what is in recipe.json

A run is one line of RUNS: what it changes in the default of `minillm pretrain`. Each is
trained with the loop of chapter 09 on a corpus of Little World and measured in the
same way at a few steps and at the end: per cent above the floor with documents scored
alone, excess bits by class of token, words that the text has settled and the model
guesses (by kind of document), and stories written from a bare start, judged by the
world's checker. What is counted are tokens and CPU seconds, never the clock. The
default run takes about 9 minutes of one core, all of them several hours; results are
written after each run to benchmarks/recipe.json, which the appendix on experiments
prints.
"""

import argparse
import json
import math
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "data")]

from littleworld import World, explain, write_corpus  # noqa: E402

from minillm.app.training import Run, RunConfig  # noqa: E402
from minillm.generation import GenerationConfig, generate  # noqa: E402
from minillm.pretraining import Validation, collate, token_losses  # noqa: E402
from minillm.support.files import write_atomic  # noqa: E402
from minillm.support.sources import read_texts  # noqa: E402
from minillm.support.token_files import TokenFile, write_tokens  # noqa: E402
from minillm.tokenizer import train_bpe  # noqa: E402
from minillm.transformer import ModelConfig, Transformer  # noqa: E402

RESULTS = ROOT / "benchmarks/recipe.json"
POINTS = (2000, 4000)


@dataclass
class Plan:
    """What a run changes in the default."""

    group: str
    dial: str = "small"
    seed: int = 0  # of the weights, the order and the corpus
    vocab_size: int = 896
    documents: int = 80_000
    context: int = 160
    rows: int = 12
    steps: int = 6000
    width: int = 128
    layers: int = 4
    init: float = 0.06
    embedding_decay: float = 0.0
    mask: bool = True
    points: tuple = POINTS
    stories: int = 200
    changes: dict = field(default_factory=dict)


def short(**changes) -> Plan:
    """A line of the ablation: 600 steps, all else as in the default."""
    own = {k: v for k, v in changes.items() if k in Plan.__dataclass_fields__}
    rest = {k: v for k, v in changes.items() if k not in own}
    group = own.pop("group", "ablation")
    return Plan(
        group, **{"steps": 600, "points": (), "stories": 100, **own}, changes=rest
    )


DIALS = {  # the vocabulary of each, and where they are longer, the rows
    "nano": dict(vocab_size=640),
    "medium": dict(vocab_size=1280),
    "full": dict(vocab_size=2560),
    "chinese": dict(vocab_size=1280),
    "big": dict(vocab_size=4096, context=208, rows=9),
}
TEN_TIMES = dict(steps=60_000, documents=800_000, points=(6000, 15_000, 30_000, 45_000))
ONE = dict(group="long", seed=1)
FASTER = dict(learning_rate=3e-3)
OLDER = dict(learning_rate=3e-3, adam_beta2=0.95)
RUNS = {
    "seed 0": Plan("default"),
    "seed 1": Plan("default", seed=1),
    "seed 2": Plan("default", seed=2),
    "embedding rate 1, 6,000 steps": Plan(changes=dict(embedding_lr_scale=1.0), **ONE),
    "beta2 0.95": Plan(changes=dict(adam_beta2=0.95), **ONE),
    "rate 3e-3": Plan(changes=FASTER, **ONE),
    "rate 3e-3, 5,000 steps": Plan(steps=5000, changes=FASTER, **ONE),
    "rate 3e-3, beta2 0.95": Plan(changes=OLDER, **ONE),
    "rate 3e-3, beta2 0.95, 5,000 steps": Plan(steps=5000, changes=OLDER, **ONE),
    "rate 3e-3, beta2 0.95, 7,500 × 8 rows": Plan(
        steps=7500, rows=8, changes=OLDER, **ONE
    ),
    "rate 4e-3, beta2 0.95, 5,000 steps": Plan(
        steps=5000, changes=OLDER | dict(learning_rate=4e-3), **ONE
    ),
    **{dial: Plan("dial", dial, **own) for dial, own in DIALS.items()},
    **{
        f"{dial}, 600 steps": short(group="early", dial=dial, **own)
        for dial, own in DIALS.items()
    },
    "medium, 60,000 steps": Plan("dial", "medium", **DIALS["medium"], **TEN_TIMES),
    "default": short(),
    "beta2 0.95, 600 steps": short(adam_beta2=0.95),
    "embedding rate 1": short(embedding_lr_scale=1.0),
    "embedding rate 1, embeddings decay": short(
        embedding_lr_scale=1.0, embedding_decay=0.1
    ),
    "embedding rate 1, decay, rate 8e-3": short(
        embedding_lr_scale=1.0, embedding_decay=0.1, learning_rate=8e-3
    ),
    "init 0.02": short(init=0.02),
    "cosine": short(lr_scheduler_type="cosine"),
    "rate 1e-3": short(learning_rate=1e-3),
    "rate 4e-3": short(learning_rate=4e-3),
    "rate 8e-3": short(learning_rate=8e-3),
    "no walls between documents": short(mask=False),
    "300 steps of 24 rows": short(rows=24, steps=300, warmup_steps=30),
    "1,200 steps of 6 rows": short(rows=6, steps=1200, warmup_steps=120),
    "no weight decay": short(weight_decay=0.0),
}


def make_corpus(plan: Plan, folder: Path):
    """Documents, a tokenizer trained on them and the token file, made once."""
    place = folder / f"data-{plan.dial}-{plan.seed}-{plan.documents}"
    if not (place / "about.json").exists():
        write_corpus(place, plan.documents, 100, dial=plan.dial, seed=plan.seed)
    texts = list(islice(read_texts(place / "train.jsonl"), 20_000))
    tokenizer = train_bpe(texts, plan.vocab_size)
    if not (place / "train.json").exists():
        write_tokens(read_texts(place / "train.jsonl"), tokenizer, place / "train")
    return place, tokenizer


def token_ends(tokenizer, ids: list[int]) -> list[int]:
    """Where each token ends, in characters: half a character belongs to the next."""
    raw, ends = b"", []
    for i in ids:
        raw += tokenizer.id_to_bytes(i)
        ends.append(len(raw.decode(errors="ignore")))
    return ends


@torch.no_grad()
def guesses(model, documents: list[list[int]]) -> list[np.ndarray]:
    """For each token of each document: is it the model's first choice there?"""
    found = []
    for ids in documents:
        row = torch.tensor([[0, *ids, 0]])
        found.append((model(row[:, :-1]).argmax(-1) == row[:, 1:])[0].numpy())
    return found


class Exam:
    """All measurements of one corpus, its exact bits worked out once."""

    def __init__(self, plan: Plan, place: Path, tokenizer, count: int = 200):
        self.world, self.tokenizer, self.plan = World(plan.dial), tokenizer, plan
        path = place / "validation.jsonl"
        self.validation = Validation.from_jsonl(path)
        self.part = Validation.from_jsonl(path, limit=count)
        self.ids = self.part.encode(tokenizer)
        self.exact = [
            explain(self.world, text, token_ends(tokenizer, ids))
            for text, ids in zip(self.part.texts, self.ids, strict=True)
        ]
        self.bits = [np.array([t.bits for t in tokens]) for tokens in self.exact]

    def measure(self, model, stories: int = 0) -> dict:
        model.eval()
        losses = token_losses(model, self.validation.encode(self.tokenizer), 0)
        bits = np.array([row.sum() for row in losses]) / math.log(2)
        floors, kinds = np.array(self.validation.bits), self.validation.kinds
        row = {"above_floor": 100 * (bits.sum() / floors.sum() - 1)}
        row["above_floor_by_kind"] = {
            kind: 100 * (bits[at].sum() / floors[at].sum() - 1)
            for kind in sorted(set(kinds))
            for at in [np.array(kinds) == kind]
        }
        row |= {"excess": self.excess(losses), "settled": self.settled(model)}
        row["alike"] = self.alike(model)
        if stories:
            row |= self.judge(model, stories, 0.6)
        return row

    def excess(self, losses) -> dict[str, float]:
        """Bits a document above the floor, by class of token."""
        totals = defaultdict(float)
        for tokens, bits, nats in zip(self.exact, self.bits, losses, strict=False):
            for token, more in zip(tokens, nats / math.log(2) - bits, strict=True):
                totals[token.label] += more / len(self.exact)
        return dict(totals)

    def settled(self, model) -> dict[str, list[int]]:
        """Words that the text has settled, by kind: guessed right, and all."""
        found = defaultdict(lambda: [0, 0])
        rights = guesses(model, self.ids)
        for tokens, right, kind in zip(
            self.exact, rights, self.part.kinds, strict=True
        ):
            pairs = zip(tokens, right, strict=True)
            for label, run in groupby(pairs, lambda pair: pair[0].label):
                run = list(run)
                if label.endswith("again") and max(t.bits for t, _ in run) < 0.1:
                    found[kind][0] += all(fine for _, fine in run)
                    found[kind][1] += 1
        return {kind: [int(n) for n in pair] for kind, pair in found.items()}

    def alike(self, model) -> float | None:
        """Mean cosine between the embeddings of the places (one token each)."""
        items = self.world.words["place"]
        places = [self.tokenizer.encode(f" {x.form('en')}") for x in items]
        ids = [ids[0] for ids in places if len(ids) == 1]
        if len(ids) < 3:
            return None
        rows = model.embed_tokens.weight[ids].detach()
        rows = rows / rows.norm(dim=1, keepdim=True)
        off = (rows @ rows.T)[~torch.eye(len(ids), dtype=torch.bool)]
        return off.mean().item()

    def judge(self, model, count: int, temperature: float) -> dict:
        """Of the stories among documents from a bare start, how many are consistent."""
        length = self.plan.context - 1
        config = GenerationConfig(length, temperature=temperature, seed=1)
        start = torch.zeros(round(count * 1.7), 1, dtype=torch.long)
        rows = generate(model, start, config).tolist()
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        verdicts = [self.world.check(text) for text in texts]
        kinds = ("story", "story_questions", None)
        stories = [v for v in verdicts if v.kind in kinds][:count]
        read = [v for v in stories if v.grammatical]
        slots = sum(v.slots for v in read)
        return {
            "stories": len(stories),
            "grammatical": len(read) / len(stories),
            "consistent": sum(v.right for v in stories) / len(stories),
            "slots": 1 - sum(len(v.faults) for v in read) / max(1, slots),
        }


def without_walls(rows, context: int) -> dict[str, torch.Tensor]:
    """Batches in which every document sees what is before it in its row."""
    batch = collate(rows, context)
    batch["document_ids"] = torch.zeros_like(batch["document_ids"])
    batch["position_ids"] = torch.arange(context).expand_as(batch["input_ids"])
    return batch


class Measure:
    """A callback that measures at the plan's points, off the CPU clock of the run."""

    def __init__(self, exam: Exam, plan: Plan):
        self.exam, self.plan, self.rows, self.spent = exam, plan, {}, 0.0

    def on_log(self, trainer, row: dict) -> None:
        step = row["step"]
        if step in self.plan.points and step < self.plan.steps:
            self.take(trainer.model, step, trainer.progress.tokens, 100)

    def take(self, model, step: int, tokens: int, stories: int) -> None:
        start = time.process_time()
        stories = stories if self.plan.stories else 0
        self.rows[step] = {"tokens": tokens, **self.exam.measure(model, stories)}
        self.spent += time.process_time() - start


def try_out(name: str, plan: Plan, folder: Path) -> dict:
    place, tokenizer = make_corpus(plan, folder)
    exam = Exam(plan, place, tokenizer)
    longest = max(len(ids) for ids in exam.validation.encode(tokenizer)) + 1
    context = max(plan.context, longest)
    torch.manual_seed(plan.seed)
    shape = ModelConfig(
        tokenizer.vocab_size, plan.width, round(plan.width * 2.75), plan.layers,
        max(1, plan.width // 32), initializer_range=plan.init,
        max_position_embeddings=max(256, context),
    )  # fmt: skip
    config = RunConfig(
        output_dir=str(folder / name.replace(" ", "-")), seed=plan.seed,
        max_steps=plan.steps, context_length=plan.context, precision="bf16",
        per_device_train_batch_size=plan.rows, logging_steps=50, eval_steps=0,
        save_steps=0, device="cpu", **plan.changes,
    )  # fmt: skip
    dataset, measure = TokenFile(place / "train", tokenizer), Measure(exam, plan)
    parts = {} if plan.mask else {"collate": without_walls}
    model = Transformer(shape)
    run = Run(model, tokenizer, config, dataset, None, [measure], **parts)
    for group in run.trainer.optimizer.param_groups:
        if group["name"] == "embeddings":
            group["weight_decay"] = plan.embedding_decay
    start = time.process_time()
    step = run.train(resume=False)["step"]
    if step < plan.steps:  # Ctrl-C or SIGTERM
        raise SystemExit(f"{name}: stopped at step {step}, not kept")
    seconds = time.process_time() - start - measure.spent
    tokens = run.trainer.progress.tokens
    measure.take(model, plan.steps, tokens, plan.stories)
    memory = max(row["memory"] for row in run.rows if "memory" in row)
    return {
        "plan": asdict(plan),
        "parameters": model.num_parameters(),
        "vocabulary": tokenizer.vocab_size,
        "floor": exam.validation.floor,
        "bits_per_document": sum(exam.validation.bits) / len(exam.validation.bits),
        "bytes_per_token": exam.validation.num_bytes
        / sum(map(len, exam.validation.encode(tokenizer))),
        "cut_documents": float((dataset.lengths > plan.context).mean()),
        "tokens": tokens,
        "cpu_seconds": seconds,
        "peak_memory": memory,
        "loss": [row["loss"] for row in run.rows if "loss" in row][-1],
        "measured": measure.rows,
    }


def keep(name: str, result: dict, path: Path) -> None:
    """Add a run to the results; what another process has added stays."""
    known = json.loads(path.read_text()) if path.exists() else {}
    with write_atomic(path) as temporary:
        text = json.dumps({**known, name: result}, indent=1, default=float)
        temporary.write_text(text + "\n", encoding="utf-8")


def table(results: dict) -> None:
    print(f"{'':38}{'tokens':>8}{'CPU s':>7}{'+ %':>7}{'gram.':>7}{'cons.':>7}")
    for name, result in results.items():
        step, last = list(result["measured"].items())[-1]
        print(
            f"{name:38}{result['tokens'] / 1e6:7.1f}M{result['cpu_seconds']:7.0f}"
            f"{last['above_floor']:7.1f}{last.get('grammatical', math.nan):7.2f}"
            f"{last.get('consistent', math.nan):7.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="runs of this file")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/recipe")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    known = (
        json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    )
    if not arguments.table:
        torch.set_num_threads(1)
        for name in arguments.names or [name for name in RUNS if name not in known]:
            print(name, flush=True)
            result = try_out(name, RUNS[name], arguments.folder)
            keep(name, result, arguments.results)
    if arguments.results.exists():
        table(json.loads(arguments.results.read_text()))


if __name__ == "__main__":
    main()
