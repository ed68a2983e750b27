"""A tokenizer with a chat template, and a model with random weights, for chats."""

import torch

from minillm.chat import Chat
from minillm.generation import GenerationConfig
from minillm.sft import CHATML
from minillm.tokenizer import train_bpe
from minillm.transformer import ModelConfig, Transformer

TEXTS = ["Once upon a time, there was a brave fox named Tim. He had a red kite."] * 4
GREEDY = GenerationConfig(do_sample=False, max_new_tokens=12)


def make_tokenizer():
    made = train_bpe(TEXTS, vocab_size=290)
    made.chat_template = CHATML
    return made


def make_model(tokenizer) -> Transformer:
    torch.manual_seed(3)
    sizes = dict(hidden_size=48, intermediate_size=96, num_hidden_layers=2)
    sizes |= dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5)
    sizes |= dict(max_position_embeddings=256)
    return Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, **sizes)).double()


def fresh(chat: Chat, text: str) -> str:
    """The same reply by a chat that has nothing in its cache."""
    other = Chat(chat.model, chat.tokenizer, chat.system, chat.config)
    other.messages, other.forgotten = list(chat.messages), chat.forgotten
    return other.reply(text)
