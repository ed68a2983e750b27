"""Train the two shipped models again, as the command line would, into checkpoints/.

    python tools/checkpoints.py            both, about 15 minutes of two cores
    python tools/checkpoints.py --fast     the recipes of the chapters, about 7 minutes

The base model is pretrained for longer than chapter 09 has time for, the chat model is
fine-tuned from it; corpus, tokenizer and code are the chapters'. Everything is made in
runs/checkpoints, where a stopped run resumes, and copied when it is whole.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = Path("runs/checkpoints")
LONG = {
    "data": ["--conversations", "24000"],
    "pretrain": [
        *("--max_steps", "8000", "--learning_rate", "3e-3", "--adam_beta2", "0.95"),
        *("--eval_steps", "1000", "--save_steps", "1000"),
    ],
    "sft": ["--max_steps", "2400", "--eval_steps", "800"],
}


def minillm(*arguments: object) -> None:
    call = "from minillm.app.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", call, *map(str, arguments)]
    print("\n$ minillm", *arguments, flush=True)
    if code := subprocess.run(command).returncode:
        sys.exit(code)


def ship(source: Path, name: str) -> None:
    target = Path("checkpoints") / name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target}: {size / 1e6:.1f} MB")


def main() -> int:
    os.chdir(ROOT)
    extra = {} if "--fast" in sys.argv else LONG
    data, words = WORK / "data", WORK / "tokenizer"
    if not (data / "about.json").exists():
        minillm("data", "make", "--output", data, *extra.get("data", []))
    if not (words / "tokenizer.json").exists():
        train = data / "train.jsonl"
        minillm("tokenizer", "train", "--data", train, "--output", words)
    minillm(
        "pretrain", "--data", data / "train.jsonl", "--tokenizer", words,
        "--output_dir", WORK / "pretrain", "--checker", "littleworld:check",
        *extra.get("pretrain", []),
    )  # fmt: skip
    minillm(
        "sft", "--model", WORK / "pretrain/final", "--data", data / "sft_train.jsonl",
        "--output_dir", WORK / "sft", *extra.get("sft", []),
    )  # fmt: skip
    ship(WORK / "pretrain/final", "littleworld-base")
    ship(WORK / "sft/final", "littleworld-chat")
    return 0


if __name__ == "__main__":
    sys.exit(main())
