"""minillm.transformer against transformers' Llama and Qwen3, in numbers and folders."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from minillm.attention import document_mask, padding_mask
from minillm.transformer import (
    ModelConfig,
    Transformer,
    count_flops,
    count_parameters,
    estimate_memory,
)

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
SMALL = dict(
    vocab_size=61, hidden_size=36, intermediate_size=40, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-6,
    pad_token_id=None,  # transformers gives the padding row no gradient; we give one
)  # fmt: skip
FORMS = {
    "llama": dict(),
    "llama, untied, wide heads": dict(tie_word_embeddings=False, head_dim=10),
    "llama 3 rope": dict(rope_scaling=LLAMA3, rope_theta=5000.0),
    "llama with biases": dict(attention_bias=True, mlp_bias=True),
    "llama, one key head": dict(num_key_value_heads=1),
    "qwen3": dict(model_type="qwen3", head_dim=8, rope_theta=1e6),
    "qwen3, untied": dict(model_type="qwen3", tie_word_embeddings=False),
}
PUBLISHED = {  # parameters as their makers state them, or as their weights hold them
    "minimind-26m": 25_829_888,
    "myllm-176m": 176_198_656,
    "llama-3.2-1b": 1_235_814_400,
    "qwen3-0.6b": 596_049_920,
}


def close(ours, theirs, tolerance=1e-5):
    difference = (ours.double() - theirs.double()).abs().max().item()
    assert difference <= tolerance, f"largest difference {difference:.2e}"


def make(seed=0, **changes):
    """A small model whose weights, norms included, are far from their start."""
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**(SMALL | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.ndim == 1), std=0.15)
    return model.eval()


def open_theirs(folder, **options):
    theirs, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager", **options
    )
    assert not any(info.values()), info  # no missing, unexpected or mismatched key
    return theirs.eval()


@pytest.fixture(scope="module", params=FORMS, ids=str)
def pair(request, tmp_path_factory):
    """Our model, and transformers' as it opens the folder that we write."""
    ours = make(**FORMS[request.param])
    folder = tmp_path_factory.mktemp("model")
    ours.save_pretrained(folder)
    return ours, open_theirs(folder)


def tokens(*shape, seed=1):
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))


# ---- the same numbers as transformers


def test_logits_loss_and_gradients_equal_transformers(pair):
    ours, theirs = pair
    ids, labels = tokens(3, 23), tokens(3, 23, seed=2)
    logits = ours(ids)
    output = theirs(ids, labels=torch.cat([ids[:, :1], labels[:, :-1]], 1))
    close(logits, output.logits)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, :-1].flatten())
    close(loss, output.loss)
    ours.zero_grad(), theirs.zero_grad()
    loss.backward(), output.loss.backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        prefix = "" if name.startswith("lm_head") else "model."
        close(parameter.grad, wanted[prefix + name].grad)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_bfloat16_equals_transformers_within_its_resolution(kind, tmp_path):
    ours = make(**FORMS[kind])
    exact = ours(tokens(3, 23))
    ours = ours.bfloat16()
    ours.save_pretrained(tmp_path)
    theirs = open_theirs(tmp_path)
    assert next(theirs.parameters()).dtype == torch.bfloat16
    step = 2**-8 * exact.abs().max().item()
    with torch.no_grad():
        mine, other = ours(tokens(3, 23)), theirs(tokens(3, 23)).logits
    close(mine, exact, 10 * step)
    close(mine, other, 10 * step)
    assert (mine - exact).abs().mean() < 1.2 * (other - exact).abs().mean()


def test_autocast_stays_near_float32():
    model, ids = make().train(), tokens(2, 19)
    exact, mask = model(ids), padding_mask(torch.ones(2, 19))
    for given_mask in (None, mask):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids, given_mask)
        close(logits, exact, 8 * 2**-8 * exact.abs().max().item())
    logits.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


# ---- one text, however it is cut, padded or packed


@settings(max_examples=25, deadline=None)
@given(cuts=st.sets(st.integers(1, 22)), kind=st.sampled_from(["llama", "qwen3"]))
def test_prefill_and_cached_steps_equal_the_full_pass(cuts, kind):
    model, ids = make(**FORMS[kind]), tokens(2, 23)
    edges = [0, *sorted(cuts), 23]
    cache, parts = model.new_cache(), []
    with torch.no_grad():
        for start, end in zip(edges, edges[1:], strict=False):
            parts.append(model(ids[:, start:end], cache=cache))
        close(torch.cat(parts, 1), model(ids))
    assert cache[0].length == 23


def test_left_padding_equals_single_runs(pair):
    model, theirs = pair
    lengths = [9, 4, 1, 7]
    ids = [tokens(1, n, seed=n) for n in lengths]
    attention_mask = torch.tensor([[0] * (9 - n) + [1] * n for n in lengths])
    batch = torch.cat([F.pad(x, (9 - x.shape[1], 0), value=5) for x in ids])
    places = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    mask = padding_mask(attention_mask)
    with torch.no_grad():
        logits = model(batch, mask, places)
        other = theirs(batch, attention_mask=attention_mask, position_ids=places)
        for row, (single, n) in enumerate(zip(ids, lengths, strict=True)):
            close(logits[row, -n:], model(single)[0])
            close(logits[row, -n:], other.logits[row, -n:])
    assert logits.isfinite().all()


def test_left_padded_rows_continue_with_a_cache():
    model, lengths = make(), [6, 3]
    full = [tokens(1, n + 2, seed=n) for n in lengths]
    keep = torch.tensor([[1] * 6, [0] * 3 + [1] * 3])
    batch = torch.cat([F.pad(x[:, :-2], (6 - n, 0)) for x, n in zip(full, lengths)])  # noqa: B905
    cache = model.new_cache()
    with torch.no_grad():
        model(batch, padding_mask(keep), (keep.cumsum(-1) - 1).clamp(min=0), cache)
        for step in (2, 1):
            keep = F.pad(keep, (0, 1), value=1)
            last = torch.cat([x[:, x.shape[1] - step, None] for x in full])
            places = keep.sum(-1, keepdim=True) - 1
            logits = model(last, padding_mask(keep, 1), places, cache)
        for row, x in enumerate(full):
            close(logits[row, -1], model(x)[0, -1])


def test_packed_rows_equal_separate_ones(pair):
    model, _ = pair
    lengths = [5, 8, 1, 6]
    ids = [tokens(1, n, seed=n) for n in lengths]
    document = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    with torch.no_grad():
        packed = model(torch.cat(ids, 1), document_mask(document), places)
        separate = torch.cat([model(x) for x in ids], 1)
    close(packed, separate)


def test_packed_rows_give_the_gradients_of_separate_ones():
    model, lengths = make(), [5, 8]
    ids = [tokens(1, n, seed=n) for n in lengths]
    document = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    model(torch.cat(ids, 1), document_mask(document), places).square().sum().backward()
    packed = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    sum(model(x).square().sum() for x in ids).backward()
    for one, two in zip(packed, model.parameters(), strict=True):
        close(one / two.grad.abs().max(), two.grad / two.grad.abs().max())


def test_the_future_cannot_leak():
    model, ids = make(), tokens(1, 12)
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 61
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[0, :7], after[0, :7])
    assert not torch.equal(before[0, 7:], after[0, 7:])


def test_logits_to_keep_and_odd_shapes():
    model, ids = make(), tokens(2, 11)
    with torch.no_grad():
        full = model(ids)
        close(model(ids, logits_to_keep=1), full[:, -1:])
        close(model(ids, logits_to_keep=4), full[:, -4:])
        assert model(ids[:1, :1]).shape == (1, 1, 61)
    with pytest.raises(ValueError):
        model(ids, cache=model.new_cache()[:2])  # a cache for fewer layers


# ---- folders


def test_folder_round_trip_is_exact(pair, tmp_path):
    ours, _ = pair
    ours.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert again.config == ours.config and not again.training
    wanted = ours.state_dict()
    assert wanted.keys() == again.state_dict().keys()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    tied = ours.config.tie_word_embeddings
    assert (again.lm_head.weight is again.embed_tokens.weight) == tied
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_loading_leaves_the_random_state_alone(tmp_path):
    make().save_pretrained(tmp_path)
    state = torch.get_rng_state()
    Transformer.from_pretrained(tmp_path)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shards", ["one file", "shards"])
@pytest.mark.parametrize("kind", ["llama", "llama3", "tied", "qwen3"])
def test_folders_made_by_transformers_load_in_ours(kind, shards, tmp_path):
    torch.manual_seed(0)
    shape = {k: v for k, v in SMALL.items() if k != "pad_token_id"}
    if kind == "qwen3":
        config = Qwen3Config(**shape, head_dim=8)
    else:
        rope = LLAMA3 | {"rope_theta": 5000.0} if kind == "llama3" else None
        config = LlamaConfig(
            **shape, rope_parameters=rope, tie_word_embeddings=kind == "tied"
        )
    theirs = (Qwen3ForCausalLM if kind == "qwen3" else LlamaForCausalLM)(config).eval()
    size = "20KB" if shards == "shards" else "50GB"
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors").exists() == (shards == "one file")
    ours = Transformer.from_pretrained(tmp_path)
    with torch.no_grad():
        close(ours(tokens(2, 17)), theirs(tokens(2, 17)).logits)


def test_a_reduced_precision_folder_keeps_its_dtype(tmp_path):
    make().bfloat16().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == (
        "bfloat16"
    )
    assert Transformer.from_pretrained(tmp_path).norm.weight.dtype == torch.bfloat16


def rewrite(folder, change):
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


FAULTS = {  # what is done to config.json, and what the message must say
    "misspelt": (lambda c: c.update(num_hiden_layers=3), "num_hidden_layers"),
    "unknown": (lambda c: c.update(num_experts=8), "num_experts"),
    "missing": (lambda c: c.pop("rms_norm_eps"), "rms_norm_eps"),
    "fewer layers": (lambda c: c.update(num_hidden_layers=2), "layers.2."),
    "more layers": (lambda c: c.update(num_hidden_layers=4), "layers.3."),
    "width": (lambda c: c.update(intermediate_size=44), r"mlp.*\(36, 40\).*\(36, 44\)"),
    "text": (lambda c: c.update(hidden_size="36"), "hidden_size='36'"),
    "heads": (lambda c: c.update(num_key_value_heads=4), "num_key_value_heads=4"),
    "kind": (lambda c: c.update(model_type="gpt2"), "model_type='gpt2'"),
    "activation": (lambda c: c.update(hidden_act="gelu"), "hidden_act='gelu'"),
    "window": (
        lambda c: c.update(layer_types=["sliding_attention"] * 3),
        "layer_types",
    ),
    "rope": (lambda c: c.update(rope_scaling={"rope_type": "yarn"}), "yarn"),
    "other kind": (lambda c: c.update(model_type="qwen3"), "k_norm"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_config_is_an_error_that_names_it(fault, tmp_path):
    make().save_pretrained(tmp_path)
    change, message = FAULTS[fault]
    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        Transformer.from_pretrained(tmp_path)


def test_wrong_weights_are_an_error_that_names_them(tmp_path):
    from safetensors.torch import load_file, save_file

    make().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    good = load_file(path)
    save_file(good | {"model.layers.0.extra": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="layers.0.extra"):
        Transformer.from_pretrained(tmp_path)
    save_file(good | {"lm_head.weight": torch.ones(61, 36)}, path)
    with pytest.raises(ValueError, match="lm_head"):
        Transformer.from_pretrained(tmp_path)
    stored_twice = {"lm_head.weight": good["model.embed_tokens.weight"].clone()}
    angles = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    save_file(good | stored_twice | angles, path)  # both are found in the wild
    Transformer.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        Transformer.from_pretrained(tmp_path)


def test_the_old_form_of_rope_fields_is_read_too(tmp_path):
    make(rope_theta=5000.0).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["rope_theta"] == 5000.0
    new = {"rope_theta": 5000.0, "rope_type": "default"}
    rewrite(
        tmp_path,
        lambda c: c.update(rope_theta=None, rope_scaling=None, rope_parameters=new),
    )
    assert ModelConfig.from_json(tmp_path / "config.json").rope_theta == 5000.0


@pytest.mark.parametrize(
    "field, value",
    [("dropout", 1.0), ("num_attention_heads", 5), ("vocab_size", 0), ("head_dim", 7)],
)
def test_a_config_that_cannot_be_names_its_field(field, value):
    with pytest.raises(ValueError, match=field):
        ModelConfig(**(SMALL | {field: value}))


# ---- presets, counts, the start


def test_presets_have_their_published_sizes():
    for name, published in PUBLISHED.items():
        with torch.device("meta"):
            model = Transformer(ModelConfig.from_preset(name))
        assert model.num_parameters() == published, name
    gpt2 = sum(count_parameters(ModelConfig.from_preset("gpt2-124m-shape")).values())
    assert abs(gpt2 / 124_439_808 - 1) < 0.01  # the shape, without learned positions
    sixty = sum(count_parameters(ModelConfig.from_preset("tiny-llama-60m")).values())
    assert round(sixty / 1e6) == 60


def test_presets_take_changes_paths_and_name_what_is_there(tmp_path):
    config = ModelConfig.from_preset("tiny", hidden_size=64, vocab_size=300)
    assert (config.hidden_size, config.head_dim, config.vocab_size) == (64, 16, 300)
    make().save_pretrained(tmp_path)
    from_folder = ModelConfig.from_preset(tmp_path)
    assert from_folder == ModelConfig.from_preset(tmp_path / "config.json")
    with pytest.raises(ValueError, match="minimind-26m"):
        ModelConfig.from_preset("tinny")


def test_counts_equal_what_is_built_and_done(pair):
    model, _ = pair
    assert sum(count_parameters(model.config).values()) == model.num_parameters()
    plain = sdpa_kernel(SDPBackend.MATH)  # as products, which are what is counted
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        model(tokens(2, 16))
    assert counter.get_total_flops() == 2 * 16 * count_flops(model.config, 16)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_memory_formula_equals_what_is_kept(kind):
    config = ModelConfig(512, 128, 352, 2, 4, 2, model_type=kind)
    model, ids = Transformer(config), torch.randint(512, (2, 64))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    measured = sum(size for place, (_, size) in kept.items() if place not in own)
    budget = estimate_memory(config, ids.numel())
    assert abs(measured / budget["activations"] - 1) < 0.02
    assert budget["weights"] == budget["gradients"] == 4 * model.num_parameters()


def test_the_start_has_the_right_spread_and_loss():
    torch.manual_seed(0)
    config = ModelConfig.from_preset(
        "llama-3.2-1b", num_hidden_layers=2, vocab_size=512
    )
    model = Transformer(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 1).all()
            continue
        small = name.endswith(("o_proj.weight", "down_proj.weight"))
        wanted = 0.02 / 2 if small else 0.02  # 2 layers: 4 branches, 1 / sqrt(4)
        assert abs(parameter.std().item() / wanted - 1) < 0.02, name


def test_one_batch_can_be_learned_by_heart():
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SMALL, initializer_range=0.1))
    ids = tokens(2, 9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(60):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05 < math.log(61)
