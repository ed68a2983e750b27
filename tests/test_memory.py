"""The memory that a run needs is known before it starts, and what to change."""

import pytest
import torch

from minillm.app.memory import check_memory, describe_memory, memory_needed
from minillm.optimization import cross_entropy
from minillm.pretraining import TrainingConfig
from minillm.transformer import ModelConfig, Transformer


def test_the_budget_is_what_a_step_holds():
    config = TrainingConfig(per_device_train_batch_size=4, context_length=64)
    model = Transformer(ModelConfig(280, 32, 64, 2, 2))
    needs = memory_needed(model.config, config)
    assert needs["weights"] == needs["gradients"] == 4 * model.num_parameters()
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    ids = torch.randint(280, (4, 64))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        cross_entropy(model(ids), ids)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    size = sum(s.nbytes() for place, s in kept.items() if place not in own)
    assert size == pytest.approx(needs["activations"], rel=0.1)


def test_memory_that_nothing_reports_is_no_reason_to_refuse():
    assert check_memory({"weights": 10**18}, None, TrainingConfig()) == ""


def test_one_row_can_not_be_halved():
    one = TrainingConfig(per_device_train_batch_size=1)
    assert "context_length below 160" in describe_memory(one)
