"""`minillm sft`: a trained model learns to answer."""

from itertools import islice
from pathlib import Path

from minillm.app import inputs, models
from minillm.app.callbacks import Judge
from minillm.app.commands.pretrain import finish
from minillm.app.console import say
from minillm.app.plugins import find_object
from minillm.app.training import Run, RunConfig
from minillm.sft import Mixture, SFTDataset, prepare_for_chat
from minillm.support.conversations import read_conversations
from minillm.support.sources import read_texts
from minillm.support.token_files import TokenFile, write_tokens

DEFAULTS = {  # chapter 10's recipe, where it differs from pretraining's
    "output_dir": "runs/sft",
    "max_steps": 800,
    "per_device_train_batch_size": 8,
    "context_length": 256,
    "learning_rate": 4e-3,
    "warmup_steps": 20,
    "weight_decay": 0.05,
}


def sft(
    model: Path = Path("runs/pretrain/final"),
    data: str = "runs/data/sft_train.jsonl",
    remember: float = 0.2,
    judge: str | None = None,
    **settings,
):
    """Teach a trained model to answer: fine-tune it on conversations.

    Args:
        model: folder of the model to start from
        data: JSONL of conversations
        remember: texts of train.jsonl to mix in for each conversation; 0 for none
        judge: module:function that judges replies to sft_test.jsonl, before and after
    """
    config = RunConfig(**settings)
    base, tokenizer, _ = models.open_model(model)
    prepare_for_chat(base, tokenizer)
    rows = read_conversations(inputs.data_source(data))
    conversations = SFTDataset(rows, tokenizer, config.context_length)
    say(str(conversations))
    folder = Path(config.output_dir)
    dataset = with_documents(conversations, data, tokenizer, remember, folder)
    validation = models.open_validation(inputs.beside(data, "validation.jsonl"))
    about = {"command": f"minillm sft --model {model} --data {data}"}
    about |= {"data": data, "from": str(model), "documents mixed in": remember}
    run = Run(base, tokenizer, config, dataset, validation, about=about)
    if judge:
        questions = Path(data).with_name("sft_test.jsonl")
        run.callbacks.append(Judge(tokenizer, find_object(judge), questions))
        run.callbacks[-1].ask(base, "before")
    return finish(run, "minillm chat")


def with_documents(conversations, data: str, tokenizer, share: float, folder: Path):
    """Conversations, mixed with `share` times as many of the base model's documents."""
    texts, count = inputs.beside(data, "train.jsonl"), round(share * len(conversations))
    if share < 0:
        raise ValueError(f"remember={share} must be 0 or more")
    if not (texts and count):
        return conversations
    path = folder / "old_documents.npy"
    write_tokens(islice(read_texts(texts), count), tokenizer, path)
    return Mixture(conversations, TokenFile(path, tokenizer))
