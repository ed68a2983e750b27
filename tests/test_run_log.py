"""The log keeps whole rows of steps that count, and the card names no machine."""

import json

import torch

from minillm.run_log import RunLog, peak_memory, write_model_card


def rows_of(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def test_rows_after_the_step_and_a_broken_line_are_forgotten(tmp_path):
    log = RunLog(tmp_path)
    for step in range(5):
        log.write({"step": step, "loss": 1 / (step + 1), "sample": "“a”"})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    log = RunLog(tmp_path, step=2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert rows_of(tmp_path) == log.rows
    assert [row["step"] for row in log.rows] == [0, 1, 2, 3]
    assert log.rows[1]["loss"] == 0.5 and log.rows[1]["sample"] == "“a”"


def test_tensorboard_shows_the_rows(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path)
    log.write({"step": 7, "loss": 0.25, "sample": "Tom had a kite.", "none": None})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Scalars("loss")
    assert (event.step, event.value) == (7, 0.25)
    assert events.Tags()["tensors"] == ["sample/text_summary"]


def test_the_card_gives_the_facts_and_no_date_or_path(tmp_path):
    facts = {"seed": 0, "tokens seen": 1234567, "bits per byte": 0.123456}
    text = write_model_card(tmp_path, facts, title="T", command="minillm pretrain")
    assert text == (tmp_path / "README.md").read_text()
    assert "| tokens seen | 1,234,567 |" in text
    assert "| bits per byte | 0.1235 |" in text
    assert torch.__version__.split("+")[0] in text and "minillm pretrain" in text
    assert str(tmp_path) not in text and "+cpu" not in text
    assert write_model_card(tmp_path, {"data": "a|b"}).count("a\\|b") == 1


def test_memory_is_bytes():
    assert 2**25 < peak_memory() < 2**42
