"""The command line: the whole chain, the options, and every kind of bad input."""

import contextlib
import errno
import gzip
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import errors  # noqa: E402

from minillm.app import errors as app_errors  # noqa: E402
from minillm.app import main as app  # noqa: E402
from minillm.app import plugins  # noqa: E402
from minillm.app.main import COMMANDS, main  # noqa: E402
from minillm.support.formats import read_jsonl  # noqa: E402

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
TRAIN = "--preset shape.json --context_length 96 --per_device_train_batch_size 2"
FAST = "--precision float32 --device cpu --warmup_steps 2"


def run(line, stdin="", folder=None):
    """(exit code, stdout, stderr) of one command, called in this process."""
    out, err = io.StringIO(), io.StringIO()
    arguments = line if isinstance(line, list) else line.split()
    before, sys.stdin = sys.stdin, io.StringIO(stdin)
    try:
        with contextlib.chdir(folder or "."), contextlib.redirect_stdout(out):
            with contextlib.redirect_stderr(err):
                code = main(arguments)
    finally:
        sys.stdin = before
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder in which every stage has run, on tiny settings; and what each said."""
    folder = tmp_path_factory.mktemp("chain")
    return folder, make_chain(folder)


def make_chain(folder):
    """Run every stage in `folder`; what each of them said."""
    (folder / "shape.json").write_text(json.dumps(SHAPE))
    said = {}
    for line in [
        "data make --documents 300 --conversations 40",
        "tokenizer train --vocab_size 300",
        f"pretrain --max_steps 20 {TRAIN} {FAST}",
        f"sft --max_steps 5 --context_length 96 {FAST}",
    ]:
        code, out, err = run(line, folder=folder)
        assert code == 0, (line, err)
        said[line.split()[0]] = out
    return said


def test_the_chain_leaves_what_the_contract_names(chain):
    folder, said = chain
    for name in [
        "data/train.jsonl", "data/validation.jsonl", "data/sft_train.jsonl",
        "data/sft_test.jsonl", "tokenizer/tokenizer.json",
        "pretrain/final/model.safetensors", "pretrain/final/README.md",
        "pretrain/checkpoint-000020/trainer_state.json", "pretrain/metrics.jsonl",
        "sft/final/model.safetensors", "sft/final/tokenizer_config.json",
    ]:  # fmt: skip
        assert (folder / "runs" / name).exists(), name
    following = {"data": "tokenizer", "tokenizer": "pretrain", "pretrain": "sft"}
    for stage, name in (following | {"sft": "chat"}).items():
        assert f"next: minillm {name}" in said[stage]


def test_the_loss_fell_and_validation_was_measured(chain):
    rows = list(read_jsonl(chain[0] / "runs/pretrain/metrics.jsonl"))
    measured = [row["eval_bits_per_byte"] for row in rows if "eval_loss" in row]
    assert measured[-1] < measured[0]
    assert rows[-1]["eval_floor"] > 0


def test_generate_continues_a_prompt(chain):
    line = [
        "generate",
        "--prompt",
        "Once upon",
        "--max_new_tokens",
        "5",
        "--count",
        "2",
    ]
    code, out, _ = run([*line, "--seed", "1"], folder=chain[0])
    assert code == 0 and out.count("Once upon") == 2
    assert "runs/pretrain/final" in out
    again = run([*line, "--seed", "1"], folder=chain[0])[1]
    assert again == out


def test_chat_answers_each_line_that_is_piped_in(chain):
    code, out, _ = run("chat --seed 1", "Hello!\n\n/reset\nHi\n/quit\nno", chain[0])
    assert code == 0
    assert "runs/sft/final" in out.splitlines()[0]


def test_a_long_message_is_reported_and_the_chat_continues(chain):
    code, out, err = run("chat", "word " * 400 + "\nHello\n", chain[0])
    assert code == 0
    assert "too long" in out and "room for" in out


def test_chat_falls_back_to_the_shipped_model_and_says_so(chain, tmp_path):
    shipped = tmp_path / "checkpoints/littleworld-chat"
    shutil.copytree(chain[0] / "runs/sft/final", shipped)
    code, out, _ = run("chat", "Hello\n", tmp_path)
    assert code == 0
    assert "checkpoints/littleworld-chat" in out.splitlines()[0]


def test_running_again_does_nothing_twice(chain):
    folder, _ = chain
    tokens = folder / "runs/pretrain/tokens.npy"
    before = tokens.stat().st_mtime_ns
    code, out, _ = run(f"pretrain --max_steps 20 {TRAIN} {FAST}", folder=folder)
    assert code == 0 and "resuming from checkpoint-000020" in out
    assert tokens.stat().st_mtime_ns == before
    rows = list(read_jsonl(folder / "runs/pretrain/metrics.jsonl"))
    steps = [row["step"] for row in rows if "tokens_per_second" in row]
    assert steps == sorted(set(steps))


def test_new_data_makes_new_tokens(chain, tmp_path):
    folder = shutil.copytree(chain[0], tmp_path / "copy")
    data = folder / "runs/data/train.jsonl"
    data.write_text(data.read_text()[: data.stat().st_size // 2].rpartition("\n")[0])
    line = f"pretrain --max_steps 1 --output_dir runs/other {TRAIN} {FAST}"
    assert run(line, folder=folder)[0] == 0
    before = (folder / "runs/pretrain/tokens.npy").stat().st_size
    assert (folder / "runs/other/tokens.npy").stat().st_size < 0.6 * before


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_resumes(chain, tmp_path):
    """SIGINT to this process while it trains; then the same command again."""
    line = f"pretrain --max_steps 3000 --output_dir {tmp_path}/run {TRAIN} {FAST}"
    log = tmp_path / "run/metrics.jsonl"

    def interrupt():
        for _ in range(300):
            time.sleep(0.05)
            if log.exists() and log.read_text().count("\n") > 2:
                break
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    code, out, _ = run(line, folder=chain[0])
    thread.join()
    assert code == 130
    assert "run the same command to resume" in out
    stopped = int(next((tmp_path / "run").glob("checkpoint-*")).name[-6:])
    assert 0 < stopped < 3000
    line = line.replace("3000", str(stopped + 3))
    code, out, _ = run(line, folder=chain[0])
    assert code == 0 and f"resuming from checkpoint-{stopped:06d}" in out
    assert (tmp_path / "run/final/model.safetensors").exists()


def test_a_checker_is_called_by_its_dotted_name(chain, tmp_path, monkeypatch):
    (tmp_path / "mychecker.py").write_text(
        "def fine(text):\n    return len(text) > 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    line = f"pretrain --max_steps 1 --output_dir {tmp_path}/run {TRAIN} {FAST}"
    code, out, _ = run(f"{line} --checker mychecker:fine", folder=chain[0])
    assert code == 0 and "20 texts are right" in out


def test_a_checker_may_lie_in_the_folder_one_starts_from(tmp_path, monkeypatch):
    (tmp_path / "own_checker.py").write_text("def fine(text):\n    return text > ''\n")
    own = [path for path in sys.path if path not in ("", ".")]
    monkeypatch.setattr(sys, "path", own)  # that of an installed program
    monkeypatch.chdir(tmp_path)
    assert plugins.find_object("own_checker:fine")("a")


def test_an_edited_checker_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for answer in ("'the first answer'", "'another'"):
        (tmp_path / "edited.py").write_text(f"def fine(text):\n    return {answer}\n")
        assert repr(plugins.find_object("edited:fine")("a")) == answer


def test_a_command_is_one_file_and_one_line_of_the_table(tmp_path, monkeypatch, capsys):
    (tmp_path / "greet.py").write_text(
        "from dataclasses import dataclass\n\n"
        "@dataclass\nclass Loud:\n    times: int = 1\n    'How often.'\n\n"
        "DEFAULTS = {'times': 2}\n\n"
        "def greet(name: str, **settings):\n"
        "    'Say hello.\\n\\n    Args:\\n        name: to whom\\n    '\n"
        "    print(f'Hello {name}! ' * Loud(**settings).times)\n"
    )
    monkeypatch.setitem(COMMANDS, "greet", "greet:greet")
    assert run("greet Tom", folder=tmp_path)[:2] == (0, "Hello Tom! Hello Tom! \n")
    assert run("greet Tom --times 1", folder=tmp_path)[1] == "Hello Tom! \n"
    assert "  greet              Say hello." in run("--help", folder=tmp_path)[1]
    help_text = run("greet --help", folder=tmp_path)[1]
    assert "to whom" in help_text and "How often. (type: int, default: 2)" in help_text


def test_answers_are_judged_before_and_after(chain, tmp_path):
    line = f"sft --max_steps 1 --context_length 96 --output_dir {tmp_path}/run {FAST}"
    code, out, err = run(f"{line} --judge littleworld:judge", folder=chain[0])
    assert code == 0, err
    for when in ("before", "after"):
        assert f"answers judged right {when} training:" in out
    assert out.count("  all ") == 2


def test_any_folder_can_be_trained_on(chain, tmp_path):
    """A reader's own .txt file, with no Little World anywhere."""
    (tmp_path / "notes").mkdir()
    text = "The rain in the lane ran down the drain again. " * 40
    (tmp_path / "notes/a.txt").write_text(text)
    (tmp_path / "notes/b.txt").write_text(text[::-1])
    (tmp_path / "shape.json").write_text(json.dumps(SHAPE))
    for line in [
        "tokenizer train --data notes --vocab_size 280",
        f"pretrain --data notes --max_steps 2 {TRAIN} {FAST}",
        "generate --prompt The --max_new_tokens 3",
    ]:
        code, _, err = run(line, folder=tmp_path)
        assert code == 0, err


# ------------------------------------------------------------------ options


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with contextlib.suppress(SystemExit):
        main([*name.split(), "--help"])
    out = capsys.readouterr().out
    assert f"usage: minillm {name}" in out
    undocumented = [
        line
        for line in out.replace("\n                        ", " ").splitlines()
        if line.startswith("  --") and line.split(maxsplit=2)[-1].startswith("(type")
    ]
    assert not undocumented


def test_the_overview_is_fast_and_imports_nothing_heavy():
    code = (
        "import sys, minillm.app.main as c; c.main(['--help']); "
        "sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"  {name} " in done.stdout


def test_a_config_file_and_an_option_that_overrides_it(tmp_path):
    settings = {"max_steps": 7, "learning_rate": 0.5, "preset": "myllm-176m"}
    (tmp_path / "run.json").write_text(json.dumps(settings))
    line = f"pretrain --config {tmp_path}/run.json --max_steps 9 --print_config"
    code, out, _ = run(line)
    values = json.loads(out)
    assert code == 0 and "config" not in values
    found = values["max_steps"], values["learning_rate"], values["preset"]
    assert found == (9, 0.5, "myllm-176m")


def test_inspect_and_convert(tmp_path):
    (tmp_path / "x.csv").write_text("story\nOne fish.\nTwo fish.\nOne fish.\n")
    code, out, _ = run("data inspect x.csv --column story --other x.csv", "", tmp_path)
    assert code == 0
    assert "documents        3" in out and "duplicates       1" in out
    assert "3 texts of x.csv" in out and "  Two fish." in out
    line = "data convert x.csv y.jsonl.gz --column story --distinct true"
    assert run(line, folder=tmp_path)[0] == 0
    rows = list(read_jsonl(tmp_path / "y.jsonl.gz"))
    assert rows == [{"text": "One fish."}, {"text": "Two fish."}]


def test_inspect_says_what_it_sampled(tmp_path, monkeypatch):
    texts = (f"fish number {number}\n<|endoftext|>\n" for number in range(3000))
    (tmp_path / "x.txt").write_text("".join(texts))
    monkeypatch.setattr("minillm.data.SAMPLE", 20_000)
    code, out, _ = run("data inspect x.txt --other x.txt", folder=tmp_path)
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in out.splitlines()[:3] if line)
    assert lines["in"].split()[1] == "3000" and "digests; of these" in lines["sampled"]
    number = int(lines["sampled"].split()[0])
    assert 500 < number < 1100 and f"documents        {number}\n" in out
    assert f"{number} texts of x.txt are in the sample" in out


def test_split_keeps_copies_on_one_side(tmp_path):
    texts = [f"fish {number % 200}\n<|endoftext|>\n" for number in range(400)]
    (tmp_path / "x.txt").write_text("".join(texts))
    assert run("data split x.txt --output out --share 0.2", folder=tmp_path)[0] == 0
    train, held = (
        [row["text"] for row in read_jsonl(tmp_path / f"out/{name}.jsonl")]
        for name in ("train", "validation")
    )
    assert len(train) + len(held) == 400 and 40 < len(held) < 120
    assert not set(train) & set(held)
    code, _, err = run("data split x.txt --output out --share 0", folder=tmp_path)
    assert code == 2 and "share=0.0 leaves no text" in err


# ---------------------------------------------------------------- bad input

MODEL = "runs/pretrain/final"
SECTIONS = {  # the first of each: book/error_messages.md, by tools/errors.py
    "no command": "The command and its options",
    "data missing": "Texts and conversations",
    "vocabulary under 256": "Tokenizers",
    "token file missing": "Files of tokens",
    "model missing": "Models",
    "prompt too long": "Settings that do not fit",
    "preset truncated": "Presets, and runs that cannot resume",
}
BROKEN = {
    # name: (how to break a copy of the chain's folder, command, what the line says)
    "no command": (None, "trane", ["no command 'trane'", "pretrain", "doctor"]),
    "half a command": (None, "data", ["no command 'data'", "data make"]),
    "unknown option": (None, "pretrain --max_step_s 3", ["--max_step_s"]),
    "abbreviation": (None, "pretrain --lr 1e-5", ["--lr"]),
    "wrong type": (None, "pretrain --max_steps many", ["--max_steps=many is not int"]),
    "wrong type of two": (None, "generate --seed x", ["--seed=x is not int or null"]),
    "out of range": (None, "pretrain --max_steps 0", ["max_steps=0", "at least 1"]),
    "no such preset": (None, "pretrain --preset huge", ["'huge'", "tiny", "myllm"]),
    "no such generator": (None, "data make --generator no:way", ["'no:way'"]),
    "no function in it": (None, "data make --generator json:way", ["'json:way'"]),
    "nothing asked for": (None, "data make --documents 0", ["documents=0"]),
    "no such dial": (None, "data make --dial vast", ["vast", "small"]),
    "config missing": (None, "pretrain --config no.json", ["no.json", "no such file"]),
    "config not JSON": (
        lambda f: (f / "bad.json").write_text("{max_steps: "),
        "pretrain --config bad.json",
        ["bad.json"],
    ),
    "data missing": (
        lambda f: (f / "runs/data/train.jsonl").unlink(),
        "tokenizer train",
        ["runs/data/train.jsonl", "minillm data make"],
    ),
    "own data missing": (None, "tokenizer train --data my.txt", ["my.txt", "no such"]),
    "data empty": (
        lambda f: (f / "empty.jsonl").write_bytes(b""),
        "pretrain --data empty.jsonl --output_dir runs/new",
        ["empty.jsonl", "holds nothing to read"],
    ),
    "corpus of blanks": (
        lambda f: (f / "blank.txt").write_text("\n\n"),
        "tokenizer train --data blank.txt",
        ["blank.txt", "holds nothing to read"],
    ),
    "folder empty": (
        lambda f: (f / "texts").mkdir(),
        "tokenizer train --data texts",
        ["texts", "no file ending in .jsonl"],
    ),
    "data truncated": (
        lambda f: (f / "cut.jsonl").write_text('{"text": "good"}\n{"text": "cu'),
        "tokenizer train --data cut.jsonl",
        ["cut.jsonl, line 2", "not JSON"],
    ),
    "gzip truncated": (
        lambda f: (f / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": 1}')[:-5]),
        "tokenizer train --data c.jsonl.gz",
        ["c.jsonl.gz", "damaged or cut short"],
    ),
    "data not UTF-8": (
        lambda f: (f / "x.txt").write_bytes(b"caf\xe9"),
        "pretrain --data x.txt --output_dir runs/new",
        ["x.txt, line 1", "0xe9", "save the file as UTF-8"],
    ),
    "data foreign": (
        lambda f: (f / "x.docx").write_bytes(b"PK\x03\x04"),
        "data inspect x.docx",
        ["x.docx", "unknown format", ".jsonl"],
    ),
    "Parquet truncated": (
        lambda f: (f / "cut.parquet").write_bytes(b"PAR1 and no more"),
        "data inspect cut.parquet",
        ["cut.parquet", "not a whole Parquet file"],
    ),
    "another column": (
        lambda f: (f / "x.csv").write_text("story,age\nOnce,7\n"),
        "tokenizer train --data x.csv",
        ["x.csv, line 2", "no column 'text'", "story, age"],
    ),
    "data without text": (
        None,
        "tokenizer train --data runs/data/sft_train.jsonl",
        ["sft_train.jsonl, line 1", "no column 'text'", "conversations"],
    ),
    "texts as conversations": (
        None,
        "sft --data runs/data/train.jsonl --output_dir runs/new",
        ["train.jsonl, line 1", "conversations"],
    ),
    "conversations empty": (
        lambda f: (f / "none.jsonl").write_text(""),
        "sft --data none.jsonl --output_dir runs/new",
        ["none.jsonl", "holds nothing to read"],
    ),
    "conversation without an answer": (
        lambda f: (f / "x.jsonl").write_text(
            '{"conversations": [{"role": "user", "content": "Hello"}]}'
        ),
        "sft --data x.jsonl --output_dir runs/new",
        ["x.jsonl, line 1", "no answer"],
    ),
    "share of documents below 0": (
        None,
        "sft --remember -1 --output_dir runs/new",
        ["remember=-1", "0 or more"],
    ),
    "public set offline": (None, "data inspect no/set", ["no/set", "network"]),
    "address offline": (
        None,
        "data inspect https://a.b/x.jsonl.gz",
        ["https://a.b/x.jsonl.gz", "network", "minillm data convert"],
    ),
    "vocabulary under 256": (
        None,
        "tokenizer train --vocab_size 200",
        ["vocab_size=200", "256"],
    ),
    "tokenizer missing": (
        lambda f: shutil.rmtree(f / "runs/tokenizer"),
        "pretrain",
        ["runs/tokenizer", "minillm tokenizer train"],
    ),
    "tokenizer truncated": (
        lambda f: halve(f / "runs/tokenizer/tokenizer.json"),
        "tokenizer encode hello",
        ["runs/tokenizer", "minillm tokenizer train"],
    ),
    "tokenizer foreign": (
        lambda f: (f / "runs/tokenizer/tokenizer.json").write_text('{"a": 1}'),
        "tokenizer inspect",
        ["runs/tokenizer", "minillm tokenizer train"],
    ),
    "tokenizer not UTF-8": (
        lambda f: (f / "runs/tokenizer/tokenizer.json").write_bytes(b'{"\xe9": 1}'),
        "tokenizer inspect",
        ["runs/tokenizer/tokenizer.json", "utf-8", "minillm tokenizer train"],
    ),
    "another tokenizer": (
        lambda f: run("tokenizer train --vocab_size 280", folder=f),
        f"pretrain {TRAIN}",
        ["tokenizer was", "output_dir"],
    ),
    "token file missing": (None, "pretrain --data no.npy", ["no.npy"]),
    "token file foreign": (
        lambda f: (f / "bad.npy").write_bytes(b"\x93NUMPY"),
        "pretrain --data bad.npy --output_dir runs/new",
        ["bad.npy"],
    ),
    "token file truncated": (
        lambda f: halve(f / "runs/pretrain/tokens.npy"),
        f"pretrain {TRAIN}",
        ["runs/pretrain/tokens.npy", "name a file"],
    ),
    "token file of another tokenizer": (
        lambda f: run("tokenizer train --vocab_size 280 --output other", folder=f),
        "pretrain --data runs/pretrain/tokens.npy --tokenizer other --output_dir new",
        ["tokens.npy", "another tokenizer"],
    ),
    "validation missing": (
        None,
        "pretrain --validation no.jsonl",
        ["no.jsonl", "no such file"],
    ),
    "validation without text": (
        None,
        "pretrain --validation runs/data/sft_test.jsonl",
        ["sft_test.jsonl", "text"],
    ),
    "model missing": (
        lambda f: shutil.rmtree(f / "runs/pretrain"),
        "sft",
        ["runs/pretrain/final", "minillm pretrain"],
    ),
    "model truncated": (
        lambda f: halve(f / MODEL / "model.safetensors"),
        "generate",
        [MODEL],
    ),
    "model without weights": (
        lambda f: (f / MODEL / "model.safetensors").unlink(),
        "generate",
        [MODEL],
    ),
    "model a pickle": (
        lambda f: (f / MODEL / "model.safetensors").rename(
            f / MODEL / "pytorch_model.bin"
        ),
        "generate",
        [MODEL, "pickle", "safetensors"],
    ),
    "model foreign": (
        lambda f: (f / MODEL / "model.safetensors").write_bytes(b"a photo" * 9),
        "generate",
        [MODEL, "header", "name another"],
    ),
    "model of another family": (
        lambda f: edit(f / MODEL / "config.json", model_type="gpt2"),
        "generate",
        [MODEL, "model_type='gpt2'", "llama, qwen3"],
    ),
    "model without tokenizer": (
        lambda f: (f / MODEL / "tokenizer.json").unlink(),
        "generate",
        [MODEL, "no tokenizer.json"],
    ),
    "model that never learned to chat": (
        None,
        "chat --model " + MODEL,
        ["no chat template"],
    ),
    "a layer too few": (
        lambda f: edit(f / MODEL / "config.json", num_hidden_layers=2),
        "generate",
        [MODEL, "layers.1", "missing"],
    ),
    "config of another shape": (
        lambda f: edit(f / MODEL / "config.json", hidden_size=64, head_dim=32),
        "generate",
        [MODEL],
    ),
    "config misspelt": (
        lambda f: edit(f / MODEL / "config.json", num_hiden_layers=2),
        "generate",
        ["num_hiden_layers"],
    ),
    "config truncated": (
        lambda f: halve(f / MODEL / "config.json"),
        "generate",
        [MODEL],
    ),
    "config impossible": (
        lambda f: edit(f / MODEL / "config.json", num_attention_heads=3),
        "generate",
        ["3"],
    ),
    "tokenizer of another model": (
        lambda f: run("tokenizer train --vocab_size 310 --output " + MODEL, folder=f),
        "generate",
        [MODEL, "310", "300"],
    ),
    "prompt too long": (
        None,
        ["generate", "--prompt", "word " * 200],
        ["tokens", "context", "96"],
    ),
    "context too long": (
        None,
        "sft --context_length 512 --output_dir runs/new",
        ["context_length=512", "max_position_embeddings=96"],
    ),
    "temperature 0": (None, "generate --temperature 0", ["temperature=0"]),
    "run of another seed": (
        None,
        f"pretrain --seed 5 {TRAIN}",
        ["seed was 0, is 5", "output_dir"],
    ),
    "device that is not there": (
        None,
        f"pretrain {TRAIN} --device nonsense --output_dir runs/new",
        ["device='nonsense' is not on this machine", "cpu"],
    ),
    "file in the way": (
        lambda f: (f / "way").write_text(""),
        "data make --documents 10 --conversations 5 --output way/data",
        ["way"],
    ),
    "preset truncated": (
        lambda f: halve(f / "shape.json"),
        f"pretrain {TRAIN} --output_dir runs/new",
        ["shape.json", "fix the file"],
    ),
    "checkpoint of another shape": (
        lambda f: edit(f / "shape.json", hidden_size=64),
        f"pretrain {TRAIN}",
        ["checkpoint-000020", "hidden_size was 32, is 64", "--output_dir"],
    ),
    "checkpoint without weights": (
        lambda f: (f / "runs/pretrain/checkpoint-000020/model.safetensors").unlink(),
        f"pretrain {TRAIN}",
        ["runs/pretrain", "none of the 1 checkpoints is whole", "--output_dir"],
    ),
    "checkpoint damaged": (
        lambda f: halve(f / "runs/pretrain/checkpoint-000020/trainer_state.json"),
        f"pretrain {TRAIN}",
        ["runs/pretrain", "output_dir"],
    ),
}


ERROR_PAGE = Path(errors.PAGE)
PINNED = sys.version_info[:2] == (3, 11)  # other versions word a few errors differently


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", BROKEN)
def test_bad_input_is_one_line_and_exit_code_2(name, chain, tmp_path):
    damage, line, parts = BROKEN[name]
    folder = chain[0]
    if damage:
        folder = shutil.copytree(folder, tmp_path / "copy")
        damage(folder)
    code, out, err = run(line, folder=folder)
    assert code == 2, (out, err)
    last = err.strip().splitlines()[-1]
    assert last.startswith("minillm: ") and len(last) < 500
    assert "Traceback" not in err
    for part in parts:
        assert part in last, (part, last)
    listed = errors.numberless(ERROR_PAGE.read_text(encoding="utf-8"))
    if PINNED:
        entry = errors.numberless(errors.entry(name, line, last))
        assert entry in listed, "python tools/errors.py"


SMALL = "tokenizer train --vocab_size 300 --output"
WRITERS = {
    "data make": "data make --documents 300 --conversations 40 --output locked/data",
    "data convert": "data convert {chain}/runs/data/train.jsonl locked/x.jsonl",
    "tokenizer": SMALL + " locked/words --data {chain}/runs/data/train.jsonl",
    "tokens": "pretrain --data {chain}/runs/data/train.jsonl --tokenizer "
    "{chain}/runs/tokenizer --output_dir locked/run --max_steps 1",
    "checkpoint": "pretrain --data {chain}/runs/pretrain/tokens.npy --max_steps 1 "
    "--preset {chain}/shape.json --tokenizer {chain}/runs/tokenizer "
    f"--context_length 96 {FAST} --output_dir locked/run",
}


ALL_OF_THEM = """
import contextlib, io, json, shutil, sys, traceback
from pathlib import Path
from minillm.app.main import main
places = ["8k", "64k", "ro"]
for place, line in [(p, line) for p in places for line in json.loads(sys.argv[1])]:
    Path("locked").unlink(missing_ok=True)
    Path("locked").symlink_to(place)
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(line)
        except Exception:
            code = traceback.format_exc()
    last = heard.getvalue().strip().splitlines()[-1:]
    print(json.dumps([place, code, *last]))
    for path in Path("locked").glob("*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
"""
ISOLATED = ["unshare", "--user", "--map-root-user", "--mount"]
MOUNTS = shutil.which("unshare") and not subprocess.run([*ISOLATED, "true"]).returncode


@pytest.mark.slow
@pytest.mark.skipif(not MOUNTS, reason="needs Linux and leave to mount a disk")
def test_a_full_or_read_only_disk_is_reported(chain, tmp_path):
    """Every stage that writes, where ./locked is one of three disks of its own."""
    lines = [line.format(chain=chain[0]).split() for line in WRITERS.values()]
    mounts = {"8k": "size=8k", "64k": "size=64k", "ro": "ro"}
    parts = [f"mkdir {n} && mount -t tmpfs -o {o} none {n}" for n, o in mounts.items()]
    script = " && ".join([*parts, 'exec "$@"'])
    work = [sys.executable, "-c", ALL_OF_THEM, json.dumps(lines)]
    command = [*ISOLATED, "sh", "-c", script, "-", *work]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(mounts) * len(lines), done.stderr
    for name, (place, code, *last) in zip(list(WRITERS) * 3, found, strict=True):
        if place == "64k" and code == 0:  # little is written, and fits
            assert name != "checkpoint"
            continue
        fix = "a disk that can be written" if place == "ro" else "free some space"
        assert code == 2, (place, name, code)
        assert last[0].startswith("minillm: ") and "locked" in last[0], (name, last)
        assert fix in last[0], (place, name, last)


def test_a_folder_of_somebody_else_is_reported(chain, tmp_path, monkeypatch):
    """Also as root, who may write anywhere: the refusal is put in its place."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "locked/y.jsonl")

    monkeypatch.setattr("minillm.support.formats.open_bytes", refuse)
    code, _, err = run("data convert x.txt locked/y.jsonl", folder=chain[0])
    assert code == 2 and "permissions" in err and "locked" in err


def test_an_errors_notes_are_in_its_line():
    error = FloatingPointError("step 3: gradient norm nan")
    error.add_note("checkpoint-000003 is unharmed")
    assert app_errors.explain(error).endswith("norm nan; checkpoint-000003 is unharmed")
    with pytest.raises(FloatingPointError), app_errors.naming("x", "name another"):
        raise error  # not about the file
    with pytest.raises(ValueError, match="^x: cut short; a note; name another$"):
        with app_errors.naming("x", "name another"):
            error = ValueError("cut short")
            error.add_note("a note")
            raise error


def test_faults_of_the_program_keep_their_traceback(monkeypatch):
    def fault(*_):
        raise AssertionError("a bug of ours")

    monkeypatch.setattr(app, "run_command", fault)
    with pytest.raises(AssertionError):
        main(["doctor"])


def test_the_traceback_flag_shows_where_an_error_arose(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("data inspect no.txt --traceback", folder=tmp_path)


def test_the_console_script_and_a_reader_that_leaves(chain):
    script = Path(sys.executable).with_name("minillm")
    line = f"{shlex.quote(str(script))} data inspect runs/data/train.jsonl | head -1"
    done = subprocess.run(
        line, shell=True, cwd=chain[0], capture_output=True, text=True
    )
    assert done.stdout.startswith("documents") and not done.stderr
