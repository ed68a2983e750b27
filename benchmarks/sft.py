"""What decides how well fine-tuning goes: rate, passes, old documents, mix of data.

    python benchmarks/sft.py             every trial below that sft.json does not hold
    python benchmarks/sft.py final       one of them, anew
    python benchmarks/sft.py --table     print what sft.json holds

Every trial fine-tunes the shipped base model by chapter 10's recipe with one thing
changed, then asks all held-out prompts (greedy, judged exactly by the world) and
measures what became of the base model's own text. Seconds are CPU seconds of one
thread, training alone. One seed each: differences of a few hundredths mean nothing.
"""

import argparse
import json
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from littleworld import judge, write_corpus

from minillm.data import read_texts
from minillm.pretraining import TokenFile, Trainer, TrainingConfig, Validation
from minillm.sft import (
    Mixture,
    SFTDataset,
    answer,
    grade,
    prepare_for_chat,
    read_conversations,
)
from minillm.tokenizer import load_tokenizer, write_tokens
from minillm.transformer import Transformer

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks/sft.json"
BASE = ROOT / "checkpoints/littleworld-base"
USUAL = {"rate": 2e-3, "steps": 400, "documents": 0.3, "conversations": 12_000}
TRIALS = {
    "rate 0.0005": {"rate": 5e-4},
    "rate 0.001": {"rate": 1e-3},
    "rate 0.002": {},
    "rate 0.004": {"rate": 4e-3},
    "no documents": {"documents": 0},
    "few conversations": {"conversations": 1500},
    "200 steps": {"steps": 200},
    "800 steps": {"steps": 800},
    "final": {"steps": 1200},
}


def make_data(folder: Path, conversations: int) -> Path:
    """A part of the corpus: enough documents to mix in, and all the test prompts."""
    if not (folder / "about.json").exists():
        write_corpus(folder, documents=4000, conversations=conversations)
    return folder


def try_out(data: Path, rate: float, steps: int, documents: float) -> dict:
    """Fine-tune once; return marks by kind and novelty, bits per byte and seconds."""
    model, tokenizer = Transformer.from_pretrained(BASE), load_tokenizer(BASE)
    prepare_for_chat(model, tokenizer)
    rows = list(read_conversations(data / "sft_train.jsonl"))
    talks = dataset = SFTDataset(rows, tokenizer, 256)
    validation = Validation.from_jsonl(data / "validation.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        if documents:
            texts = islice(
                read_texts(data / "train.jsonl"), round(documents * len(talks))
            )
            write_tokens(texts, tokenizer, f"{folder}/old")
            dataset = Mixture(talks, TokenFile(f"{folder}/old", tokenizer))
        config = TrainingConfig(
            output_dir=f"{folder}/run",
            max_steps=steps,
            per_device_train_batch_size=8,
            context_length=256,
            learning_rate=rate,
            warmup_steps=20,
            weight_decay=0.05,
            eval_steps=steps,
            save_steps=0,
        )
        trainer = Trainer(model, tokenizer, config, dataset, validation)
        began = time.process_time()
        result = trainer.train()
        seconds = time.process_time() - began
        metrics = Path(folder) / "run/metrics.jsonl"
        logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    test = list(read_conversations(data / "sft_test.jsonl"))
    replies = answer(model.eval(), tokenizer, test)
    novelty = [{**row, "kind": row["novelty"]} for row in test]
    return {
        "kinds": grade(test, replies, judge),
        "novelty": grade(novelty, replies, judge),
        "epochs": [row["epoch"] for row in logged if "epoch" in row][-1],
        "bits_before": logged[0].get("eval_bits_per_byte"),
        "bits_after": result["eval_bits_per_byte"],
        "seconds": seconds,
    }


def print_table(table: dict) -> None:
    print(f"{'trial':19}{'right':>7}{'prompt':>8}{'never':>7}{'forgot':>8}", end="")
    print(f"{'passes':>8}{'CPU s':>7}")
    for name, row in table.items():
        right, prompt, never = (
            f"{right / asked:.3f}"
            for right, asked in (
                row["kinds"]["all"],
                row["novelty"]["new prompt"],
                row["novelty"]["never asked"],
            )
        )
        forgot = row["bits_after"] / row["bits_before"] - 1
        print(f"{name:19}{right:>7}{prompt:>8}{never:>7}{forgot:>+8.1%}", end="")
        print(f"{row['epochs']:8.1f}{row['seconds']:7.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("trials", nargs="*", help=", ".join(TRIALS))
    parser.add_argument("--table", action="store_true", help="print, and train nothing")
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/benchmark_sft")
    given = parser.parse_args()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if not given.table:
        torch.set_num_threads(1)
        for name in given.trials or [name for name in TRIALS if name not in table]:
            settings = USUAL | TRIALS[name]
            count = settings.pop("conversations")
            data = make_data(given.cache / str(count), count)
            table[name] = try_out(data, **settings)
            table = {name: table[name] for name in TRIALS if name in table}
            TABLE.write_text(json.dumps(table, indent=1) + "\n")
            print_table({name: table[name]})
    print_table(table)


if __name__ == "__main__":
    main()
