"""Frozen, adapted or wrapped: a model saves, says what, and resumes bit for bit."""

import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from tiny_run import make_model, make_trainer, result, token_file, tokenizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minillm.pretraining import Batches, Trainer, TrainingConfig
from minillm.relay import Checkpoints, load_weights, save_weights
from minillm.support.checkpoints import last_checkpoint
from minillm.transformer import Transformer


class LowRank(nn.Module):
    """A frozen layer and, added to it, the product of two small matrices that train."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer
        self.a = nn.Linear(layer.in_features, rank, bias=False)
        self.b = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.b.weight)
        self.register_buffer("calls", torch.zeros(()))  # changes, but has no gradient

    def forward(self, x):
        self.calls += self.training
        return self.layer(x) + self.b(self.a(x))


TRAINED = (".a.weight", ".b.weight", ".calls")


def make_adapted(seed=0, rank=2):
    model = make_model(seed, dropout=0.1).requires_grad_(False)
    torch.manual_seed(7)
    for layer in model.layers:
        for name in ("q_proj", "v_proj"):
            wrapped = LowRank(getattr(layer.self_attn, name), rank)
            setattr(layer.self_attn, name, wrapped)
    return model


def make_frozen(seed=0):
    """Of the first layer, nothing is trained."""
    model = make_model(seed, dropout=0.1)
    model.layers[0].requires_grad_(False)
    return model


class StopAt:
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.step == self.step:
            trainer.stop()


def state_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())


def tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def train_whole_and_in_parts(make, tmp_path, **changes):
    """The weights of a run that was never stopped, and of one that was, twice."""
    found = []
    for name, stops in (("whole", [None]), ("parts", [3, 7, None])):
        for stop in stops:
            model = make()
            make_trainer(
                tmp_path / name, token_file(tmp_path), model,
                [StopAt(stop)] if stop else [], **changes,
            ).train()  # fmt: skip
        found.append(tensors(model))
    return found


def test_a_model_frozen_in_part_resumes_to_the_same_bits(tmp_path):
    whole, parts = train_whole_and_in_parts(make_frozen, tmp_path)
    assert same(whole, parts)
    assert result(tmp_path / "whole") == result(tmp_path / "parts")
    start = make_frozen().state_dict()
    moved = {name for name in start if not torch.equal(start[name], whole[name])}
    assert moved == {name for name in start if not name.startswith("layers.0.")}


def test_a_model_frozen_in_part_is_saved_whole(tmp_path):
    make_trainer(tmp_path, model=make_frozen()).train()
    folder, state = last_checkpoint(tmp_path / "run")
    assert state["saved"] == "all weights" and state["identity"]["frozen weights"]
    assert Transformer.from_pretrained(folder).num_parameters()
    moments = load_file(folder / "optimizer.safetensors")
    assert moments and not [name for name in moments if name.startswith("layers.0.")]


def test_an_adapted_model_resumes_to_the_same_bits(tmp_path):
    whole, parts = train_whole_and_in_parts(make_adapted, tmp_path)
    assert same(whole, parts)
    start = make_adapted().state_dict()
    moved = {name for name in start if not torch.equal(start[name], whole[name])}
    assert moved == {name for name in start if name.endswith(TRAINED)}


def test_of_an_adapted_model_the_trained_part_is_saved_and_named(tmp_path):
    run = make_trainer(tmp_path, model=make_adapted())
    run.train()
    folder, state = last_checkpoint(tmp_path / "run")
    count = len(run.model.state_dict())
    assert state["saved"] == f"12 trained tensors of {count}"
    names = load_file(folder / "trainable.safetensors").keys()
    assert len(names) == 12
    assert all(name.endswith(TRAINED) for name in names)
    assert not (folder / "model.safetensors").exists()
    assert state["saved"] in (tmp_path / "run/final/README.md").read_text()


@pytest.mark.parametrize(
    "make, other, named",
    [
        (make_frozen, lambda: make_frozen(seed=1), "frozen weights was .*, is "),
        (make_frozen, make_model, "frozen weights was .*, is None"),
        (make_adapted, lambda: make_adapted(seed=1), "frozen weights was .*, is "),
        (make_adapted, make_model, "trained was 12 tensors, is None"),
        (make_model, make_adapted, "trained was None, is 12 tensors"),
        (make_adapted, lambda: make_adapted(rank=3), r"shape of layers.*\(2, 16\)"),
    ],
)
def test_another_base_or_another_part_is_refused_by_name(make, other, named, tmp_path):
    make_trainer(tmp_path, model=make(), max_steps=4).train()
    with pytest.raises(ValueError, match=named):
        make_trainer(tmp_path, model=other(), max_steps=8).train()


class WithHead(nn.Module):
    """A transformer with an output of its own, all of it trained."""

    def __init__(self, seed=0):
        super().__init__()
        self.body = make_model(seed)
        self.config = self.body.config
        torch.manual_seed(3)
        self.head = nn.Linear(self.config.vocab_size, self.config.vocab_size)

    def forward(self, *inputs, **options):
        return self.head(self.body(*inputs, **options))


def test_a_model_with_another_head_and_a_tied_embedding_comes_back(tmp_path):
    first, second = WithHead(), WithHead(seed=5)
    said = save_weights(first, tmp_path)
    count = len(list(first.named_parameters()))  # the tied head counts once
    assert said == f"{count} trained tensors of {len(first.state_dict())}"
    load_weights(second, tmp_path)
    assert same(tensors(first), tensors(second))
    assert second.body.lm_head.weight is second.body.embed_tokens.weight


def make_loop(folder, model, wrap=None, callbacks=(), steps=6, precision="float32"):
    """The loop with checkpoints and nothing else."""
    config = TrainingConfig(steps, precision=precision, warmup_steps=2)
    batches = Batches(token_file(folder.parent), 2, 48)
    saving = Checkpoints(folder, tokenizer(), every=0)
    trainer = Trainer(model, config, batches, callbacks=[*callbacks, saving], wrap=wrap)
    saving.resume(trainer)
    return trainer


@pytest.fixture
def group():
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("make", [make_model, make_frozen, make_adapted])
def test_a_wrapped_model_is_saved_under_the_plain_names(make, group, tmp_path):
    plain, wrapped = make(), make()
    make_loop(tmp_path / "plain", plain).train()
    trainer = make_loop(tmp_path / "ddp", wrapped, DistributedDataParallel)
    trainer.train()
    assert isinstance(trainer.forward, DistributedDataParallel)
    assert same(tensors(plain), tensors(wrapped))
    folders = [last_checkpoint(tmp_path / name)[0] for name in ("plain", "ddp")]
    for file in folders[0].iterdir():
        if file.name != "trainer_state.json":
            assert file.read_bytes() == (folders[1] / file.name).read_bytes(), file.name


def test_what_was_saved_from_a_wrapped_model_resumes_without_it(group, tmp_path):
    whole, later = make_adapted(), make_adapted()
    make_loop(tmp_path / "whole", whole).train()
    stop = [StopAt(2)]
    make_loop(tmp_path / "run", make_adapted(), DistributedDataParallel, stop).train()
    make_loop(tmp_path / "run", later).train()
    assert same(tensors(whole), tensors(later))


def test_the_loss_scale_of_fp16_is_in_the_state_and_comes_back(tmp_path):
    trainer = make_loop(
        tmp_path / "run", make_model(), callbacks=[StopAt(2)], precision="fp16"
    )
    trainer.loss_scale.value = 1024.0
    trainer.train()
    folder, state = last_checkpoint(tmp_path / "run")
    assert state["loss_scale"] == {"value": 1024.0, "good_steps": 2}
    again = make_loop(tmp_path / "run", make_model(), precision="fp16")
    assert again.loss_scale.value == 1024.0 and again.loss_scale.good_steps == 2


def test_a_run_in_fp16_resumes_to_the_same_bits(tmp_path):
    whole, parts = train_whole_and_in_parts(
        lambda: make_model(dropout=0.1), tmp_path, precision="fp16"
    )
    assert same(whole, parts)


def test_what_is_frozen_needs_no_gradients_and_no_moments(tmp_path):
    all_of_it = make_trainer(tmp_path, model=make_model()).memory_needed()
    run = make_trainer(tmp_path, model=make_adapted())
    few, total = run.memory_needed(), sum(p.numel() for p in run.model.parameters())
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert few["weights"] == all_of_it["weights"]
    for name in ("gradients", "optimizer"):
        assert few[name] == pytest.approx(all_of_it[name] * trained / total, rel=0.01)


def test_a_checkpoint_says_in_its_state_what_it_saved(tmp_path):
    make_trainer(tmp_path, max_steps=4).train()
    assert state_of(last_checkpoint(tmp_path / "run")[0])["saved"] == "all weights"
