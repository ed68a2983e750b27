"""The checks of chapters 10 and 11: the solution passes, wrong answers are refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minillm.generation import GenerationConfig, generate
from minillm.sft import CHATML, ChatTemplate, SFTDataset
from minillm.tokenizer import load_tokenizer
from minillm.transformer import Transformer

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "checkpoints/littleworld-chat"
IMPORTED = (re, replace, np, torch, GenerationConfig, generate, CHATML, ChatTemplate)


def run_cells(space: dict, stem: str, *names: str) -> None:
    """Run the cells of a notebook that define these functions."""
    notebook = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8"))
    for cell in notebook["cells"]:
        defined = re.findall(r"^def (\w+)", "".join(cell["source"]), re.M)
        if cell["cell_type"] == "code" and set(names) & set(defined):
            exec("".join(cell["source"]), space)


@pytest.fixture(scope="module")
def space() -> dict:
    """What the cells need of those above them."""
    model, tokenizer = Transformer.from_pretrained(FOLDER), load_tokenizer(FOLDER)
    made = {"model": model, "tokenizer": tokenizer, "folder": FOLDER}
    made |= {thing.__name__: thing for thing in IMPORTED if hasattr(thing, "__name__")}
    made |= {"np": np, "CHATML": CHATML, "load_tokenizer": load_tokenizer}
    made["template"] = ChatTemplate(tokenizer)
    made["start"], made["end"] = map(
        tokenizer.token_to_id, ("<|im_start|>", "<|im_end|>")
    )
    run_cells(made, "10_sft", "write_by_hand")
    sums = [("user", "What is 2 + 3?"), ("assistant", "2 + 3 = 5.")]
    more = [{"role": role, "content": content} for role, content in sums]
    head = {"role": "system", "content": "You are a tiny storyteller."}
    made["two_turns"] = [head, *made["exchange"], *more]
    talks = [made["exchange"], made["two_turns"]]
    made["tiny"] = SFTDataset(talks, tokenizer, 128)
    return made


def variants(space: dict, stem: str, solution: str, *changes: tuple[str, str]) -> list:
    """A solution with one thing changed, for each change."""
    notebook = json.loads((ROOT / "notebooks" / f"{stem}.ipynb").read_text("utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    (source,) = [text for text in sources if f"def {solution}" in text]
    source, made = source.split("\n\n\ncheck_")[0], []
    for old, new in changes:
        assert source.count(old) == 1, old
        own = dict(space)
        exec(source.replace(old, new), own)
        made.append(own[solution])
    return made


def refused(capsys, check, wrong: list) -> None:
    for number, answer in enumerate(wrong):
        capsys.readouterr()
        check(answer)
        said = capsys.readouterr().out
        assert said and not said.startswith("ok"), f"wrong answer {number} passes"
        assert len(said.splitlines()) == 1, said


def test_template(space, capsys):
    run_cells(space, "10_sft", "check_template", "solution_template")
    assert capsys.readouterr().out.endswith("ok\n")
    changes = [
        (" | trim", ""),
        ('\\n\\n\' }}"\n        "{{ m', '\\n\' }}"\n        "{{ m'),
    ]
    wrong = variants(space, "10_sft", "solution_template", *changes)
    refused(capsys, space["check_template"], [lambda: None, lambda: CHATML, *wrong])


def test_tool(space, capsys):
    run_cells(space, "10_sft", "check_tool", "solution_tool")
    assert capsys.readouterr().out == "ok\n"
    parse = 'encode(message["content"], allowed_special=tokenizer.special_tokens)'
    changes = [
        ('encode(message["content"])', parse),
        ('== "assistant"', '!= "user"'),
        ("[own] * len(body)", "[own] * (len(body) - 1) + [False]"),
        ("[False] * len(tail)", "[own] * len(tail)"),
    ]
    wrong = variants(space, "10_sft", "solution_tool", *changes)
    refused(capsys, space["check_tool"], wrong)


def test_search(space, capsys):
    run_cells(space, "10_sft", "check_search", "solution_search")
    assert capsys.readouterr().out == "ok\n"
    wrong = [
        lambda dataset, end: [1, 2],
        lambda dataset, end: None,
        lambda dataset, end: range(len(dataset)),
        lambda dataset, end: [
            n for n in range(len(dataset)) if dataset[n][1][-1] != end
        ],
    ]
    refused(capsys, space["check_search"], wrong)


def evaluated(reply):
    try:
        left, right = reply.rstrip(".").split("=", 1)
        return eval(left) == eval(right), str(eval(left))
    except (SyntaxError, ValueError, NameError):
        return None


def test_badge(space, capsys):
    run_cells(space, "11_chat", "check_badge", "solution_badge")
    assert capsys.readouterr().out == "ok\n"
    changes = [
        ("re.fullmatch", "re.match"),
        ("re.fullmatch", "re.search"),
        (', f"{wanted}"', ", None"),
        (', f"{wanted}"', ""),
        ("said == wanted", "True"),
    ]
    wrong = variants(space, "11_chat", "solution_badge", *changes)
    refused(capsys, space["check_badge"], [lambda reply: None, evaluated, *wrong])


def test_fitting(space, capsys):
    run_cells(space, "11_chat", "check_fitting", "solution_fit")
    assert capsys.readouterr().out == "ok\n"
    newest = (
        "messages[start:]",
        "messages[2 : len(messages) + 1 - start] + messages[-1:]",
    )
    wrong = variants(space, "11_chat", "solution_fit", newest, ("2, len", "4, len"))
    wrong += [
        lambda template, messages, limit: None,
        lambda template, messages, limit: messages,
        lambda template, messages, limit: messages[:2] + messages[-1:],
    ]
    refused(capsys, space["check_fitting"], wrong)


def test_fix(space, capsys):
    run_cells(space, "11_chat", "check_fix", "solution_fix")
    assert capsys.readouterr().out == "ok\n"
    wrong = [
        lambda config: None,
        lambda config: config,
        lambda config: replace(config, max_new_tokens=8),
    ]
    refused(capsys, space["check_fix"], wrong)
