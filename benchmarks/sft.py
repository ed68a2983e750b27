"""What decides how well fine-tuning goes: rate, passes, old documents, mix of data.

    python benchmarks/sft.py             every trial below that is not in sft.json
    python benchmarks/sft.py final       one of them, again
    python benchmarks/sft.py --table     print what is in sft.json

Every trial fine-tunes the shipped base model by chapter 10's recipe with one thing
changed, then asks held-out prompts (greedy, judged exactly by the world) and
measures what became of the base model's own text. Seconds are CPU seconds of one
thread, training alone. One seed each: differences of a few hundredths mean nothing.
"""

import argparse
import json
import re
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from littleworld import judge, write_corpus

from minillm.app.training import Run, RunConfig
from minillm.pretraining import Validation, evaluate
from minillm.sft import Mixture, SFTDataset, answer, grade, prepare_for_chat
from minillm.support.conversations import read_conversations
from minillm.support.sources import read_texts
from minillm.support.token_files import TokenFile, write_tokens
from minillm.tokenizer import load_tokenizer
from minillm.transformer import Transformer

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks/sft.json"
BASE = ROOT / "checkpoints/littleworld-base"
CHAT = ROOT / "checkpoints/littleworld-chat"
USUAL = {"rate": 4e-3, "steps": 200, "documents": 0.2, "conversations": 12_000}
TRIALS = {
    "rate 0.0005": {"rate": 5e-4},
    "rate 0.002": {"rate": 2e-3},
    "rate 0.004": {},
    "rate 0.012": {"rate": 1.2e-2},
    "no documents": {"documents": 0},
    "600 conversations": {"conversations": 600},
    "600 steps": {"steps": 600},
    "shipped": {"steps": 2400, "conversations": 24_000},  # not trained here: CHAT
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
    validation = Validation.from_jsonl(data / "validation.jsonl", limit=200)
    with tempfile.TemporaryDirectory() as folder:
        if documents:
            texts = islice(
                read_texts(data / "train.jsonl"), round(documents * len(talks))
            )
            write_tokens(texts, tokenizer, f"{folder}/old")
            dataset = Mixture(talks, TokenFile(f"{folder}/old", tokenizer))
        config = RunConfig(
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
        run = Run(model, tokenizer, config, dataset, validation)
        began = time.process_time()
        result = run.train()
        seconds = time.process_time() - began
        metrics = Path(folder) / "run/metrics.jsonl"
        logged = [json.loads(line) for line in metrics.read_text().splitlines()]
    return examine(model, tokenizer, data) | {
        "epochs": [row["epoch"] for row in logged if "epoch" in row][-1],
        "bits_before": logged[0].get("eval_bits_per_byte"),
        "bits_after": result["eval_bits_per_byte"],
        "seconds": seconds,
    }


def examine(model: Transformer, tokenizer, data: Path) -> dict:
    """Marks on twenty held-out prompts of every kind, by kind and by novelty."""
    test = list(read_conversations(data / "sft_test.jsonl"))
    test = test[: len(test) // 2]  # the kinds come in turn
    replies = answer(model.eval(), tokenizer, test)
    novelty = [{**row, "kind": row["novelty"]} for row in test]
    return {
        "kinds": grade(test, replies, judge),
        "novelty": grade(novelty, replies, judge),
    }


def measure_shipped(data: Path) -> dict:
    """The same marks for the shipped chat model, from its folder and its card."""
    card = (CHAT / "README.md").read_text()
    validation = Validation.from_jsonl(data / "validation.jsonl", limit=200)
    bits = {}
    for folder in (BASE, CHAT):
        model, tokenizer = Transformer.from_pretrained(folder), load_tokenizer(folder)
        found = evaluate(model.eval(), tokenizer, validation)
        bits[folder] = found["bits_per_byte"]
    return examine(model, tokenizer, data) | {
        "epochs": float(re.search(r"\| passes over the data \| ([\d.]+)", card)[1]),
        "bits_before": bits[BASE],
        "bits_after": bits[CHAT],
        "seconds": None,
    }


def print_table(table: dict) -> None:
    print(f"{'trial':19}{'right':>7}{'prompt':>8}{'never':>7}{'context':>9}", end="")
    print(f"{'forgot':>8}{'passes':>8}{'CPU s':>7}")
    for name, row in table.items():
        marks = (
            row["kinds"]["all"],
            *(
                row["novelty"][kind]
                for kind in ("new prompt", "never asked", "new context")
            ),
        )
        shares = [right / asked for right, asked in marks]
        print(f"{name:19}{shares[0]:7.3f}{shares[1]:8.3f}{shares[2]:7.3f}", end="")
        forgot = row["bits_after"] / row["bits_before"] - 1
        print(f"{shares[3]:9.3f}{forgot:>+8.1%}{row['epochs']:8.1f}", end="")
        print(f"{row['seconds']:7.0f}" if row["seconds"] else "      -")


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
            shipped = name == "shipped"
            table[name] = (
                measure_shipped(data) if shipped else try_out(data, **settings)
            )
            table = {name: table[name] for name in TRIALS if name in table}
            TABLE.write_text(json.dumps(table, indent=1) + "\n")
            print_table({name: table[name]})
    print_table(table)


if __name__ == "__main__":
    main()
