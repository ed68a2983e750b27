"""What the reader edits is what runs: every way to text goes through the one forward.

Each edit is made on a live model, after it has written text, and seen in `generate`,
`stream` and `Chat`. What they must write is found by a loop without a cache.
"""

import pytest
import torch
from torch import nn

from minillm import attention
from minillm.attention import Attention, Rope
from minillm.chat import Chat
from minillm.decoder_layer import DecoderLayer, RMSNorm
from minillm.generation import GenerationConfig, generate, stream, stream_ids
from minillm.mlp import MLP
from minillm.sft import CHATML
from minillm.tokenizer import train_bpe
from minillm.transformer import ModelConfig, Transformer

N = 24
GREEDY = GenerationConfig(max_new_tokens=N, do_sample=False, eos_token_id=())
TEXTS = ["Once upon a time, there was a brave fox named Tim. He had a red kite."] * 4


@pytest.fixture(scope="module")
def tokenizer():
    made = train_bpe(TEXTS, vocab_size=290)
    made.chat_template = CHATML
    return made


@pytest.fixture(params=["llama", "qwen3"])
def model(request, tokenizer):
    """Of its own in every test, because the tests edit it; exact, so no ties."""
    torch.manual_seed(3)
    sizes = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5)
    sizes |= dict(max_position_embeddings=256, model_type=request.param)
    config = ModelConfig(vocab_size=tokenizer.vocab_size, **sizes)
    return Transformer(config).double().eval()


# ---- the edits; each takes a live model and pytest's monkeypatch


def without_rotation(forward):
    def edited(self, hidden_states, rotation=None, mask=None, cache=None):
        return forward(self, hidden_states, None, mask, cache)

    return edited


def silent(forward):
    return lambda self, x: torch.zeros_like(x)


def rope_removed_in_the_class(model, patch):
    patch.setattr(Attention, "forward", without_rotation(Attention.forward))


def rope_removed_in_one_layer(model, patch):
    layer = model.layers[1].self_attn
    edited = without_rotation(Attention.forward).__get__(layer)
    patch.setattr(layer, "forward", edited)


def mlp_silenced_in_the_class(model, patch):
    patch.setattr(MLP, "forward", silent(MLP.forward))


def mlp_silenced_in_one_layer(model, patch):
    patch.setattr(model.layers[0].mlp, "forward", torch.zeros_like)


def mlp_replaced(model, patch):
    model.layers[1].mlp = nn.Identity()


def values_not_mixed(model, patch):
    """Every query gets the value of its own position, whatever it would look at."""

    def attend(query, key, value, *rest):
        own = value[:, :, -query.shape[2] :]
        return own.repeat_interleave(query.shape[1] // value.shape[1], 1)

    patch.setattr(attention, "attend", attend)


def rotation_reversed(model, patch):
    rotate = attention.rotate
    patch.setattr(attention, "rotate", lambda x, cos, sin: rotate(x, cos, -2 * sin))


def positions_stretched(model, patch):
    angles = Rope.__call__
    patch.setattr(
        Rope, "__call__", lambda self, position_ids: angles(self, position_ids * 7)
    )


def norm_without_its_root(model, patch):
    patch.setattr(RMSNorm, "forward", lambda self, x: self.weight * x / 10)


def layers_without_a_stream(model, patch):
    def forward(self, hidden_states, rotation=None, mask=None, cache=None):
        x = self.self_attn(self.input_layernorm(hidden_states), rotation, mask, cache)
        return self.mlp(self.post_attention_layernorm(x))

    patch.setattr(DecoderLayer, "forward", forward)


def hooked(model, patch):
    model.layers[0].register_forward_hook(lambda module, args, out: -out)


def weights_changed_in_place(model, patch):
    model.layers[0].self_attn.v_proj.weight.data.mul_(-1)  # no version counter sees it


def head_replaced(model, patch):
    with torch.no_grad():
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.flip(0))


EDITS = [
    rope_removed_in_the_class,
    rope_removed_in_one_layer,
    mlp_silenced_in_the_class,
    mlp_silenced_in_one_layer,
    mlp_replaced,
    values_not_mixed,
    rotation_reversed,
    positions_stretched,
    norm_without_its_root,
    layers_without_a_stream,
    hooked,
    weights_changed_in_place,
    head_replaced,
]
every_edit = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)


# ---- the reference: the whole text through the model, for every token


@torch.no_grad()
def plain(model, ids, new_tokens=N, ends=()):
    """Greedy ids that follow `ids` (1, T), without a cache, up to an end token."""
    made = []
    for _ in range(new_tokens):
        token = model(ids)[:, -1].argmax(-1)
        if token.item() in ends:
            break
        made.append(token.item())
        ids = torch.cat([ids, token[:, None]], 1)
    return made


@pytest.fixture
def prompt(tokenizer):
    return torch.tensor([[0, *tokenizer.encode("Once upon a time, there was")]])


@every_edit
def test_generate_follows_an_edit(model, prompt, edit, monkeypatch):
    before = generate(model, prompt, GREEDY)[0, prompt.shape[1] :].tolist()
    assert before == plain(model, prompt)
    edit(model, monkeypatch)
    after = generate(model, prompt, GREEDY)[0, prompt.shape[1] :].tolist()
    assert after == plain(model, prompt)
    assert after != before


@every_edit
def test_a_batch_with_padding_follows_an_edit(model, prompt, edit, monkeypatch):
    short = prompt[:, :4]
    width = prompt.shape[1] - short.shape[1]
    padded = torch.cat([prompt, nn.functional.pad(short, (width, 0))])
    mask = torch.ones_like(padded)
    mask[1, :width] = 0
    generate(model, padded, GREEDY, mask)
    edit(model, monkeypatch)
    after = generate(model, padded, GREEDY, mask)[:, prompt.shape[1] :].tolist()
    assert after == [plain(model, prompt), plain(model, short)]


@every_edit
def test_stream_follows_an_edit(model, tokenizer, prompt, edit, monkeypatch):
    ids = prompt[0].tolist()
    before = "".join(stream(model, tokenizer, ids, GREEDY))
    assert before == "".join(tokenizer.stream(plain(model, prompt)))
    edit(model, monkeypatch)
    after = "".join(stream(model, tokenizer, ids, GREEDY))
    assert after == "".join(tokenizer.stream(plain(model, prompt)))
    assert after != before


@every_edit
def test_a_chat_follows_an_edit(model, tokenizer, edit, monkeypatch):
    config = GenerationConfig(max_new_tokens=N, do_sample=False)
    chat = Chat(model, tokenizer, config=config)
    before = chat.reply("Who is Tim?")
    edit(model, monkeypatch)
    chat.reset()
    ends = (chat.template.end_token_id, tokenizer.eos_token_id)
    for question in ("Who is Tim?", "And the kite?"):  # the second reuses the cache
        messages = [*chat.messages, {"role": "user", "content": question}]
        ids, _ = chat.template.encode(messages, add_generation_prompt=True)
        wanted = plain(model, torch.tensor([ids]), N, ends)
        assert chat.reply(question) == "".join(tokenizer.stream(wanted))
    assert chat.messages[1]["content"] != before


@every_edit
def test_an_edit_amid_a_stream_is_in_the_very_next_token(
    model, prompt, edit, monkeypatch
):
    """Keys that are already in the cache stay; all that is computed is the edited."""
    made, cache, new = [], model.new_cache(), prompt
    running = stream_ids(model, prompt, GREEDY)
    for step in range(N):
        if step == 5:
            edit(model, monkeypatch)
        with torch.no_grad():
            new = model(new, cache=cache)[:, -1:].argmax(-1)
        made.append(new.item())
        assert next(running) == made[-1]


def test_the_model_is_called_once_for_every_token(model, prompt):
    """By its own __call__: once for the whole prompt, then for one token a step."""
    shapes = []
    handle = model.register_forward_pre_hook(
        lambda module, args: shapes.append(tuple(args[0].shape))
    )
    generate(model, prompt, GREEDY)
    handle.remove()
    assert shapes == [tuple(prompt.shape)] + [(1, 1)] * (N - 1)


def test_a_cache_of_the_caller_is_used_by_the_edited_model(model, prompt, monkeypatch):
    """A prefill by hand, an edit, then `generate`: nothing was put aside anywhere."""
    caches = model.new_cache(), model.new_cache()
    with torch.no_grad():
        for cache in caches:
            model(prompt[:, :-1], cache=cache)
    rope_removed_in_the_class(model, monkeypatch)
    made, new = [], prompt[:, -1:]
    for _ in range(N):
        with torch.no_grad():
            new = model(new, cache=caches[0])[:, -1:].argmax(-1)
        made.append(new.item())
    got = generate(model, prompt, GREEDY, cache=caches[1])
    assert got[0, prompt.shape[1] :].tolist() == made
