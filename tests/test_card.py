"""The model card gives the facts, under a head the Hub reads, and names no machine."""

import torch
from huggingface_hub import ModelCard

from minillm.support.card import write_model_card


def test_the_card_gives_the_facts_and_no_date_or_path(tmp_path):
    facts = {"seed": 0, "tokens seen": 1234567, "bits per byte": 0.123456}
    text = write_model_card(tmp_path, facts, title="T", command="minillm pretrain")
    assert text == (tmp_path / "README.md").read_text()
    assert "| tokens seen | 1,234,567 |" in text
    assert "| bits per byte | 0.1235 |" in text
    assert torch.__version__.split("+")[0] in text and "minillm pretrain" in text
    assert str(tmp_path) not in text and "+cpu" not in text
    assert write_model_card(tmp_path, {"data": "a|b"}).count("a\\|b") == 1


def test_the_hub_reads_the_head(tmp_path):
    write_model_card(tmp_path, {"seed": 0})
    head = ModelCard.load(tmp_path / "README.md").data
    assert head.library_name == "transformers"
    assert head.pipeline_tag == "text-generation"
