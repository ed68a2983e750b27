"""A conversation that remembers: turns, a cache that is reused, and a chat window."""

# Generated from notebooks/11_chat.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "CHAT_CONFIG",
    "STYLE",
    "Checker",
    "common_prefix",
    "Chat",
    "badge_html",
    "tokens_html",
    "chat_html",
    "ChatWidget",
]

# %%
import html
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import torch

from minillm.data import write_jsonl
from minillm.generation import GenerationConfig, stop_before, stream_ids
from minillm.sft import ChatTemplate, read_conversations

# %%
CHAT_CONFIG = GenerationConfig(max_new_tokens=160, temperature=0.6)


def common_prefix(first: list[int], second: list[int]) -> int:
    """How many ids two sequences begin with alike."""
    length = min(len(first), len(second))
    return next((n for n in range(length) if first[n] != second[n]), length)


# %%
class Chat:
    """A conversation with a model, whose cache is kept from turn to turn.

    `messages` holds all of it. When it no longer fits the context, the oldest turns
    are left out of what the model sees; `forgotten` counts those messages. After a
    reply, `finish_reason` is "stop" (the model ended it), "length" or "stopped" (by
    the caller), and `reused` says how many tokens of the prompt were in the cache.
    """

    def __init__(
        self,
        model,
        tokenizer,
        system: str | None = None,
        config: GenerationConfig = CHAT_CONFIG,
    ):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.template, self.config = ChatTemplate(tokenizer), config
        self.context = model.config.max_position_embeddings
        self.system = system
        self.reset()

    def reset(self) -> None:
        """Begin anew; the system prompt stays."""
        self.messages, self.forgotten = [], 0
        self.cache, self.cached = self.model.new_cache(), []
        self.finish_reason, self.reused = None, 0

    def stream(self, text: str) -> Iterator[str]:
        """Say `text`; yield the reply piece by piece. Closing it stops the model."""
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self.prompt()
        except ValueError:
            self.messages.pop()
            raise
        reply, self.finish_reason = "", None
        try:
            pieces = self.tokenizer.stream(self._continue(ids))
            for piece in stop_before(pieces, self.config.stop_strings):
                reply += piece
                yield piece
            self.finish_reason = self.finish_reason or "stop"
        except GeneratorExit:
            self.finish_reason = "stopped"
            raise
        finally:
            self.messages.append({"role": "assistant", "content": reply})

    def reply(self, text: str) -> str:
        """Say `text` and return the whole reply."""
        return "".join(self.stream(text))

    def undo(self) -> str:
        """Take back the last exchange; return what the user had said."""
        if not self.messages:
            raise ValueError("there is nothing to take back: no message was sent yet")
        *self.messages, question, _ = self.messages
        self.forgotten = min(self.forgotten, len(self.messages))
        return question["content"]

    def prompt(self) -> list[int]:
        """What the model is about to see; leaves out the oldest turns until it fits."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        room = min(self.config.max_new_tokens, self.context // 4)
        while True:
            seen = system + self.messages[self.forgotten :]
            ids, _ = self.template.encode(seen, add_generation_prompt=True)
            if len(ids) + room <= self.context:
                return ids
            if self.forgotten + 2 > len(self.messages):
                raise ValueError(
                    f"the message is too long: with it the model would see {len(ids)} "
                    f"tokens, its context is {self.context}, a reply needs {room}"
                )
            self.forgotten += 2

    def _continue(self, ids: list[int]) -> Iterator[int]:
        """Ids of the reply. Only what the cache does not hold yet is computed."""
        held = min(layer.length for layer in self.cache)
        self.reused = min(common_prefix(self.cached, ids), held, len(ids) - 1)
        for layer in self.cache:
            layer.crop(self.reused)
        self.cached = list(ids)
        config = replace(
            self.config,
            eos_token_id=(self.template.end_token_id, self.tokenizer.eos_token_id),
            max_new_tokens=min(self.config.max_new_tokens, self.context - len(ids)),
        )
        prompt = torch.tensor([ids], device=self.model.lm_head.weight.device)
        for number in stream_ids(self.model, prompt, config, self.cache):
            self.cached.append(number)
            yield number
        if len(self.cached) - len(ids) == config.max_new_tokens:
            self.finish_reason = "length"

    def save(self, path: str | Path) -> None:
        """Write the conversation as a line that chapter 10 can train on."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        write_jsonl([{"conversations": system + self.messages}], path)

    def load(self, path: str | Path) -> None:
        """Go on with a conversation that `save` wrote."""
        messages = next(read_conversations(path))["conversations"]
        self.reset()
        self.system = None
        if messages[0]["role"] == "system":
            self.system = messages.pop(0)["content"]
        self.messages = messages

    def probabilities(self) -> list[tuple[str, float]]:
        """The tokens of the last reply and its end, each with its probability."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        seen = system + self.messages[self.forgotten :]
        ids, learned = self.template.encode(seen)
        start = len(self.template.encode(seen[:-1], add_generation_prompt=True)[0])
        inputs = torch.tensor([ids], device=self.model.lm_head.weight.device)
        with torch.inference_mode():
            shares = self.model(inputs)[0, :-1].float().softmax(-1)
        return [
            (self.tokenizer.decode([ids[t]]), shares[t - 1, ids[t]].item())
            for t in range(start, len(ids))
            if learned[t]
        ]


# %%
STYLE = """<style>
.mini-chat {font: 14px/1.5 system-ui, sans-serif; overflow-wrap: anywhere}
.mini-chat div {margin: 4px 0; padding: 6px 10px; border-radius: 10px;
  width: fit-content; max-width: 92%; white-space: pre-wrap; color: #111}
.mini-chat .user {background: #cfe4f7; margin-left: auto}
.mini-chat .assistant {background: #ececec}
.mini-chat .note {background: #fff3c4; font-size: 12px}
.mini-chat .forgotten {opacity: .55}
.mini-chat b {font-size: 12px; padding: 1px 6px; border-radius: 8px; margin-left: 6px}
.mini-chat .right {background: #cdeccd; color: #0b4a0b}
.mini-chat .wrong {background: #f7d0c8; color: #6d1200}
.mini-chat i {font-style: normal; border-radius: 3px; color: #111}
.bd-content .mini-live {display: none !important}
</style>"""

Checker = Callable[[str], tuple[bool, str] | None]


def badge_html(verdict: tuple[bool, str] | None) -> str:
    """What a checker says of a reply, as a small coloured mark."""
    if verdict is None:
        return ""
    right, text = verdict
    return f"<b class='{'right' if right else 'wrong'}'>{html.escape(text)}</b>"


def tokens_html(tokens: list[tuple[str, float]]) -> str:
    """Tokens on a ground that is the paler, the surer the model was of them."""
    parts = []
    for text, share in tokens:
        ground = f"rgb(255, {int(140 + 115 * share)}, {int(60 + 195 * share)})"
        shown = html.escape(text).replace("\n", "↵\n")
        parts.append(f"<i style='background:{ground}' title='{share:.2f}'>{shown}</i>")
    return "".join(parts)


def chat_html(
    chat: Chat, pending: str = "", checker: Checker | None = None, tokens: bool = False
) -> str:
    """A conversation as HTML; whatever was typed or generated is shown as text."""
    parts = []
    for number, message in enumerate(chat.messages):
        text, badge, role = html.escape(message["content"]), "", message["role"]
        if role == "assistant":
            badge = badge_html(checker(message["content"])) if checker else ""
            if tokens and number == len(chat.messages) - 1:
                text = tokens_html(chat.probabilities())
        if number == chat.forgotten > 0:
            parts.append(
                "<div class='note'>the context is full: the model no longer "
                "sees what is above</div>"
            )
        faded = " forgotten" if number < chat.forgotten else ""
        parts.append(f"<div class='{role}{faded}'>{text}{badge}</div>")
    if pending:
        parts.append(f"<div class='assistant'>{html.escape(pending)}▌</div>")
    return f"{STYLE}<div class='mini-chat' role='log'>{''.join(parts)}</div>"


# %%
class ChatWidget:
    """A chat window for notebooks: streaming, stop, retry, sampling, side by side.

    `other` is a second `Chat` that gets the same messages, such as the base model's.
    `checker(reply)` returns None or (right, text), shown as a badge. Replies are made
    in a thread, so the kernel stays free; `ask(text, wait=True)` waits for them.
    """

    def __init__(
        self,
        chat: Chat,
        other: Chat | None = None,
        checker: Checker | None = None,
        names: tuple[str, str] = ("tuned", "base"),
    ):
        self.chats = [chat] + ([other] if other else [])
        self.checker, self.names = checker, names
        self.worker: threading.Thread | None = None
        self.stopping = threading.Event()
        self.pending = [""] * len(self.chats)
        self.note = ""
        self._build()
        self.show()

    def _build(self) -> None:
        import ipywidgets as w  # only the window needs it, a terminal does not

        self.panes = [w.HTML(layout=w.Layout(flex="1 1 280px")) for _ in self.chats]
        self.entry = w.Text(placeholder="Say something, then Enter", description="You")
        self.entry.layout = w.Layout(flex="1 1 240px", width="auto")
        self.entry.on_msg(self._on_enter)
        actions = {
            "Send": lambda _: self.send(),
            "Stop": lambda _: self.stop(),
            "Retry": lambda _: self.retry(),
            "New": lambda _: self.reset(),
        }
        self.buttons = {name: w.Button(description=name) for name in actions}
        for name, action in actions.items():
            self.buttons[name].layout = w.Layout(width="auto")
            self.buttons[name].on_click(action)
        config = self.chats[0].config
        self.sampling = {
            "temperature": w.FloatSlider(config.temperature, min=0, max=2, step=0.1),
            "top_p": w.FloatSlider(config.top_p, min=0.05, max=1, step=0.05),
            "max_new_tokens": w.IntSlider(config.max_new_tokens, min=1, max=512),
        }
        for name, slider in self.sampling.items():
            slider.description = name.replace("_", " ")
            slider.style = {"description_width": "initial"}
            slider.observe(self._on_sampling, names="value")
        self.tokens = w.Checkbox(False, description="show probabilities", indent=False)
        self.tokens.observe(lambda _: self.show(), names="value")
        wrap = w.Layout(flex_flow="row wrap", align_items="center")
        rows = [
            w.HBox([self.entry, *self.buttons.values()], layout=wrap),
            w.HBox([*self.sampling.values(), self.tokens], layout=wrap),
        ]
        for row in rows:
            row.add_class("mini-live")  # hidden where there is no kernel to talk to
        self.status = w.HTML()
        self.box = w.VBox([w.HBox(self.panes, layout=wrap), self.status, *rows])

    def _on_enter(self, _, content: dict, __) -> None:
        if content.get("event") == "submit":
            self.send()

    def _on_sampling(self, _) -> None:
        values = {name: slider.value for name, slider in self.sampling.items()}
        values["do_sample"] = values["temperature"] > 0
        values["temperature"] = values["temperature"] or 1.0
        for chat in self.chats:
            chat.config = replace(chat.config, **values)

    @property
    def busy(self) -> bool:
        return self.worker is not None and self.worker.is_alive()

    def send(self) -> None:
        """Send what stands in the entry."""
        if (text := self.entry.value.strip()) and not self.busy:
            self.entry.value = ""
            self.ask(text)

    def retry(self) -> None:
        """Take back the last exchange and ask the same again."""
        if not self.busy and self.chats[0].messages:
            for chat in self.chats:
                text = chat.undo()
                if chat.config.seed is not None:  # else the same reply would come
                    chat.config = replace(chat.config, seed=chat.config.seed + 1)
            self.ask(text)

    def stop(self) -> None:
        """Have the replies end where they are, and wait until they have."""
        self.stopping.set()
        if self.busy:
            self.worker.join()

    def reset(self) -> None:
        """Begin a new conversation."""
        self.stop()
        for chat in self.chats:
            chat.reset()
        self.show()

    def ask(self, text: str, wait: bool = False) -> None:
        """Send `text` to every chat; with `wait`, return when the replies are there."""
        if self.busy:
            raise RuntimeError("a reply is being made: stop it or wait for it")
        self.stopping.clear()
        self.worker = threading.Thread(target=self._run, args=(text,), daemon=True)
        self.worker.start()
        if wait:
            self.worker.join()

    def _run(self, text: str) -> None:
        """Let the chats speak by turns, a piece each, until all have ended."""
        self.pending, self.note, shown = [" "] * len(self.chats), "", 0.0
        streams = [chat.stream(text) for chat in self.chats]
        try:
            for pieces in zip_longest(*streams, fillvalue=""):
                self.pending = [
                    a + b for a, b in zip(self.pending, pieces, strict=True)
                ]
                if self.stopping.is_set():
                    break
                if time.monotonic() - shown > 0.05:
                    self.show()
                    shown = time.monotonic()
        except Exception as error:  # a thread's error would be seen by nobody
            self.note = f"{type(error).__name__}: {error}"
        finally:
            for stream in streams:
                stream.close()
            even = min(len(chat.messages) for chat in self.chats)
            for chat in self.chats:  # if one refused the message, none has it
                if len(chat.messages) > even:
                    chat.undo()
            self.pending = [""] * len(self.chats)
            self.show()

    def show(self) -> None:
        """Draw the conversation as it stands."""
        for number, (chat, pane) in enumerate(zip(self.chats, self.panes, strict=True)):
            title = (
                f"<b>{html.escape(self.names[number])}</b>" if self.chats[1:] else ""
            )
            body = chat_html(
                chat, self.pending[number], self.checker, self.tokens.value
            )
            pane.value = title + body
        reasons = {"length": "cut at its longest", "stopped": "stopped"}
        reason = reasons.get(self.chats[0].finish_reason or "", "")
        self.status.value = html.escape(self.note or reason)

    def _repr_mimebundle_(self, **options) -> dict:
        """The live window, and for pages without widgets the conversation as HTML."""
        bundle = self.box._repr_mimebundle_(**options)
        return {**bundle, "text/html": "".join(pane.value for pane in self.panes)}
