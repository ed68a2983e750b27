"""The model's doors, walked through: another form, vectors in, hidden states out.

What later chapters will do with chapter 06 without editing it is done here with
something small: GPT-2 and a mixture of experts as entries of `FORMS`, embeddings in
place of ids, the stack without its head, and a loss term from inside a layer.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from minillm.attention import Attention, document_mask
from minillm.decoder_layer import DecoderLayer
from minillm.generation import GenerationConfig, generate
from minillm.mlp import MLP
from minillm.pretraining import Trainer, TrainingConfig, next_token_loss
from minillm.transformer import (
    FORMS,
    Counts,
    Form,
    ModelConfig,
    Transformer,
    count_flops,
    count_layers,
    count_parameters,
    estimate_memory,
)

SIZES = dict(
    vocab_size=61, hidden_size=36, intermediate_size=50, num_hidden_layers=3,
    num_attention_heads=6, max_position_embeddings=40, rms_norm_eps=1e-6,
)  # fmt: skip


def tokens(*shape, seed=1):
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance=1e-5):
    assert (ours - theirs).abs().max() <= tolerance


def scatter(model, seed=0):
    """Give all parameters, norms and biases included, values far from their start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=float(parameter.ndim == 1), std=0.15)
    return model.eval()


# ---- GPT-2: a learned table of positions, LayerNorm, biases, other names


@dataclass
class SmallGPT2Config(ModelConfig):
    model_type: str = "gpt2"
    attention_bias: bool = True
    mlp_bias: bool = True
    activation_function: str = "gelu_new"  # a field that Llama does not have


class PlainMLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


def gpt2_layer(config: ModelConfig) -> DecoderLayer:
    E, eps = config.hidden_size, config.rms_norm_eps
    attention = Attention(E, config.num_attention_heads, bias=config.attention_bias)
    mlp = PlainMLP(E, config.intermediate_size)
    return DecoderLayer(E, attention, mlp, eps, config.dropout, norm=nn.LayerNorm)


def gpt2_counts(config: ModelConfig) -> Counts:
    E, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    attention, mlp = 4 * E * E, 2 * E * F
    parameters = {"attention": L * (attention + 4 * E), "mlp": L * (mlp + F + E)}
    parameters["norms"] = (2 * L + 1) * 2 * E
    kept = L * (8 * E + 2 * F) + 2 * E
    return Counts(parameters, L * (attention + mlp), kept)


FIELDS = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
}
WITHOUT = "rope_theta rope_scaling head_dim num_key_value_heads hidden_act".split()
WITHOUT += "attention_bias mlp_bias dropout".split()
INERT = "attn_pdrop embd_pdrop resid_pdrop add_cross_attention n_ctx".split()
INERT += "reorder_and_upcast_attn scale_attn_by_inverse_layer_idx".split()
INERT += "scale_attn_weights".split()


def gpt2_read(raw: dict) -> dict:
    kept = {k: v for k, v in raw.items() if k[:8] != "summary_" and k not in INERT}
    kept["n_inner"] = kept.get("n_inner") or 4 * kept["n_embd"]
    return {FIELDS.get(k, k): v for k, v in kept.items()}


def gpt2_write(ours: dict) -> dict:
    names = {ours: theirs for theirs, ours in FIELDS.items()}
    return {names.get(k, k): v for k, v in ours.items() if k not in WITHOUT}


TENSORS = {
    "layers.": "h.",
    "embed_tokens": "wte",
    "embed_positions": "wpe",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj",
    "self_attn.qkv": "attn.c_attn",
    "mlp.up_proj": "mlp.c_fc",
    "mlp.down_proj": "mlp.c_proj",
}


def is_product(name: str) -> bool:
    return name.endswith(".weight") and ".c_" in name  # stored as (in, out)


def gpt2_to_file(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = dict(weights)
    for name in [name for name in ours if "q_proj" in name]:
        three = [ours.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        ours[name.replace("q_proj", "qkv")] = torch.cat(three)
    found = {}
    for name, tensor in ours.items():
        for mine, theirs in TENSORS.items():
            name = name.replace(mine, theirs)
        name = f"transformer.{name}".replace("transformer.norm.", "transformer.ln_f.")
        found[name] = tensor.T if is_product(name) else tensor
    return found


def gpt2_from_file(found: dict[str, Tensor]) -> dict[str, Tensor]:
    ours = {}
    for name, tensor in found.items():
        tensor = tensor.T if is_product(name) else tensor
        name = name.removeprefix("transformer.").replace("ln_f.", "norm.")
        for mine, theirs in TENSORS.items():
            name = name.replace(theirs, mine)
        three = zip("qkv", tensor.chunk(3), strict=True) if ".qkv." in name else ()
        ours |= {name.replace("qkv", f"{x}_proj"): part for x, part in three}
        if ".qkv." not in name:
            ours[name] = tensor
    return ours


@pytest.fixture
def gpt2(monkeypatch):
    form = Form(
        "GPT2LMHeadModel",
        build_layer=gpt2_layer,
        count=gpt2_counts,
        norm=nn.LayerNorm,
        learned_positions=True,
        config=SmallGPT2Config,
        read_config=gpt2_read,
        write_config=gpt2_write,
        from_file=gpt2_from_file,
        to_file=gpt2_to_file,
    )
    monkeypatch.setitem(FORMS, "gpt2", form)
    return scatter(Transformer(SmallGPT2Config(**SIZES)))


def test_our_gpt2_folder_is_opened_by_transformers(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert isinstance(theirs, GPT2LMHeadModel)
    assert not any(info.values()), info  # no missing, unexpected or mismatched key
    assert theirs.config.n_embd == 36 and theirs.config.n_inner == 50
    with torch.no_grad():
        close(gpt2(tokens(2, 17)), theirs.eval()(tokens(2, 17)).logits)
    again = Transformer.from_pretrained(tmp_path)
    assert again.config == gpt2.config and type(again.config) is SmallGPT2Config
    assert torch.equal(again(tokens(2, 17)), gpt2(tokens(2, 17)))


@pytest.mark.parametrize("inner", [None, 44])
def test_a_gpt2_folder_of_transformers_is_opened_by_ours(gpt2, inner, tmp_path):
    shape = GPT2Config(
        vocab_size=61, n_positions=40, n_embd=36, n_layer=3, n_head=6, n_inner=inner
    )
    theirs = scatter(GPT2LMHeadModel(shape))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")  # in several files
    ours, ids = Transformer.from_pretrained(tmp_path), tokens(2, 17)
    assert ours.config.intermediate_size == (inner or 144)
    logits, wanted = ours(ids), theirs(ids, labels=ids)
    close(logits, wanted.logits)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    wanted.loss.backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    for name, grad in gpt2_to_file(grads).items():
        close(grad, theirs.get_parameter(name).grad)


def test_gpt2_is_counted_by_its_own_entry(gpt2):
    config, ids = gpt2.config, tokens(2, 16)
    parts = count_parameters(config)
    assert sum(parts.values()) == gpt2.num_parameters()
    assert parts["embed_positions"] == 40 * 36 and parts["lm_head"] == 0
    plain = sdpa_kernel(SDPBackend.MATH)  # as products, which are what is counted
    with torch.no_grad(), plain, FlopCounterMode(display=False) as counter:
        gpt2(ids)
    assert counter.get_total_flops() == ids.numel() * count_flops(config, 16)
    wide = SmallGPT2Config(512, 128, 512, 2, 4)
    kept = kept_for_backward(Transformer(wide), torch.randint(512, (2, 64)))
    assert abs(kept / estimate_memory(wide, 128)["activations"] - 1) < 0.02


def kept_for_backward(model, ids):
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage, storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    return sum(size for place, (_, size) in kept.items() if place not in own)


def test_gpt2_generates_the_same_with_a_cache_as_without(gpt2):
    assert_generation_needs_no_cache(gpt2)


def assert_generation_needs_no_cache(model):
    ids = start = tokens(2, 5)
    greedy = GenerationConfig(12, do_sample=False, eos_token_id=())
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], 1)
    assert torch.equal(generate(model, start, greedy), ids)


def test_an_unknown_form_is_an_error_that_lists_the_known(gpt2, tmp_path, monkeypatch):
    gpt2.save_pretrained(tmp_path)
    monkeypatch.delitem(FORMS, "gpt2")
    with pytest.raises(ValueError, match="model_type='gpt2' .* llama, qwen3$"):
        Transformer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='gpt2' .* llama, qwen3$"):
        ModelConfig.from_preset("tiny", model_type="gpt2")


# ---- a mixture of experts: another part, more fields, a loss term of its own


@dataclass
class MixtureConfig(ModelConfig):
    model_type: str = "mixture"
    num_experts: int = 4
    num_experts_per_tok: int = 2


class Mixture(nn.Module):
    """A few of many MLPs for each token, by a router that is asked to share out."""

    def __init__(self, hidden_size: int, intermediate_size: int, experts: int, k: int):
        super().__init__()
        self.k, self.router = k, nn.Linear(hidden_size, experts, bias=False)
        parts = [MLP(hidden_size, intermediate_size) for _ in range(experts)]
        self.experts = nn.ModuleList(parts)
        self.penalty: Tensor | None = None  # of the last forward pass

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)  # (B, T, experts)
        best, chosen = shares.topk(self.k)
        self.penalty = shares.mean((0, 1)).square().sum() * len(self.experts)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out = out + (best * (chosen == number)).sum(-1, keepdim=True) * expert(x)
        return out


def mixture_layer(config: MixtureConfig) -> DecoderLayer:
    layer = FORMS["llama"].build_layer(config)
    sizes = config.hidden_size, config.intermediate_size
    layer.mlp = Mixture(*sizes, config.num_experts, config.num_experts_per_tok)
    return layer


def mixture_counts(config: MixtureConfig) -> Counts:
    counts, E, L = count_layers(config), config.hidden_size, config.num_hidden_layers
    expert = counts.parameters["mlp"]
    router = L * E * config.num_experts
    counts.parameters["mlp"] = expert * config.num_experts + router
    counts.active += expert * (config.num_experts_per_tok - 1) + router
    return counts


@pytest.fixture
def mixture(monkeypatch):
    form = Form(
        "MixtureForCausalLM", mixture_layer, mixture_counts, config=MixtureConfig
    )
    monkeypatch.setitem(FORMS, "mixture", form)
    return scatter(Transformer(MixtureConfig(**SIZES, num_key_value_heads=2)))


def test_a_mixture_is_opened_counted_and_generates(mixture, tmp_path):
    mixture.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert again.config == mixture.config and again.config.num_experts == 4
    assert torch.equal(again(tokens(2, 9)), mixture(tokens(2, 9)))
    assert sum(count_parameters(mixture.config).values()) == mixture.num_parameters()
    one = MixtureConfig(**SIZES, num_experts=9, num_experts_per_tok=1)
    router = 3 * 36 * 9
    assert count_flops(one, 7) == count_flops(ModelConfig(**SIZES), 7) + 2 * router
    assert_generation_needs_no_cache(mixture)
    with pytest.raises(ValueError, match="did you mean num_experts?"):
        ModelConfig.from_json(tmp_path / "config.json", num_expert=8)


def test_the_start_reaches_every_expert(mixture):
    model = Transformer(mixture.config)
    for name, parameter in model.named_parameters():
        small = name.endswith(("o_proj.weight", "down_proj.weight"))
        if parameter.ndim > 1:
            wanted = 0.02 * (6**-0.5 if small else 1)  # 3 layers: 6 branches
            assert abs(parameter.std().item() / wanted - 1) < 0.2, name


def balanced_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each row, and half a penalty for each of its tokens."""
    rows = next_token_loss(model, batch)
    parts = [m.penalty for m in model.modules() if isinstance(m, Mixture)]
    return rows + 0.5 * sum(parts) * (batch["labels"] != -100).sum(1)


def test_a_loss_term_from_inside_a_layer_is_learned_through_the_trainer(mixture):
    ids, documents = tokens(3, 12), torch.arange(12).expand(3, -1) // 7
    labels = ids.roll(-1, 1).masked_fill(documents == 1, -100)
    batch = {"input_ids": ids, "labels": labels, "document_ids": documents}
    batch["position_ids"] = torch.arange(12).expand(3, -1)
    config = TrainingConfig(1, 3, context_length=12, precision="float32")
    config.max_grad_norm = 1e9  # gradients as they are
    mixture.train()

    logits = mixture(ids, document_mask(documents), batch["position_ids"])
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
    penalty = sum(layer.mlp.penalty for layer in mixture.layers)
    wanted = torch.autograd.grad(loss + 0.5 * penalty, list(mixture.parameters()))
    routers = [layer.mlp.router.weight for layer in mixture.layers]
    alone = torch.autograd.grad(loss_of(mixture, batch), routers)

    trainer = Trainer(mixture, config, iter([batch]), loss=balanced_loss)
    trainer.train_step()
    for parameter, gradient in zip(mixture.parameters(), wanted, strict=True):
        close(parameter.grad, gradient)
    for router, gradient in zip(routers, alone, strict=True):
        assert (router.grad - gradient).abs().max() > 1e-3  # the penalty is in it


def loss_of(model, batch):
    return next_token_loss(model, batch).sum() / (batch["labels"] != -100).sum()


# ---- vectors in, hidden states out


@pytest.fixture(params=["llama", "qwen3", "gpt2"])
def model(request):
    if request.param == "gpt2":
        return request.getfixturevalue("gpt2")
    return scatter(Transformer(ModelConfig(**SIZES, model_type=request.param)))


@torch.no_grad()
def test_vectors_in_place_of_ids_give_the_same(model):
    ids = tokens(2, 11)
    vectors, places = model.embed_tokens(ids), torch.arange(11) % 6
    mask = document_mask(torch.arange(11).expand(2, -1) // 6)
    assert torch.equal(model(inputs_embeds=vectors), model(ids))
    packed = model(None, mask, places, inputs_embeds=vectors)
    assert torch.equal(packed, model(ids, mask, places))
    last = model(inputs_embeds=vectors, logits_to_keep=2)
    assert torch.equal(last, model(ids, logits_to_keep=2))


@torch.no_grad()
def test_vectors_go_into_a_cache_and_ids_continue_it(model):
    ids, cache = tokens(2, 11), model.new_cache()
    first = model(inputs_embeds=model.embed_tokens(ids[:, :4]), cache=cache)
    assert cache[0].length == 4
    then = model(ids[:, 4:5], cache=cache)
    rest = model(cache=cache, inputs_embeds=model.embed_tokens(ids[:, 5:]))
    close(torch.cat([first, then, rest], 1), model(ids))


def test_vectors_in_front_of_a_text_get_a_gradient():
    """As a projector of pictures needs it: the model is frozen, the vectors learn."""
    model = scatter(Transformer(ModelConfig(**SIZES))).requires_grad_(False)
    picture = torch.randn(1, 4, 36, requires_grad=True)
    both = torch.cat([picture, model.embed_tokens(tokens(1, 6))], 1)
    model(inputs_embeds=both)[0, -1].logsumexp(-1).backward()
    assert (picture.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize("both", [True, False])
def test_ids_or_vectors_but_one_of_them(model, both):
    ids = tokens(1, 3)
    vectors = {"inputs_embeds": model.embed_tokens(ids)} if both else {}
    for call in (model, model.hidden_states):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            call(ids if both else None, **vectors)


def test_the_head_of_the_hidden_states_is_the_forward_pass(model):
    ids, mask = tokens(2, 11), document_mask(torch.arange(11).expand(2, -1) // 6)
    arguments = (ids, mask, torch.arange(11) % 6)
    states, cache = model.hidden_states(*arguments), model.new_cache()
    assert states.shape == (2, 11, 36)
    assert torch.equal(states @ model.lm_head.weight.T, model(*arguments))
    with torch.no_grad():
        pieces = [model.hidden_states(x, cache=cache) for x in ids.split((4, 7), 1)]
        close(torch.cat(pieces, 1), model.hidden_states(ids))
    model.hidden_states(ids).square().sum().backward()  # as for a head of one's own
    assert all(p.grad is not None for n, p in model.named_parameters() if "layers" in n)
