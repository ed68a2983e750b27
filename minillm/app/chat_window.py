"""A chat window for notebooks: streamed, stoppable, judged, two models side by side."""

import html
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest

import ipywidgets as w

from minillm.chat import Chat, token_probabilities
from minillm.generation import GenerationConfig

STYLE = """<style>
.mini-chat {font: 14px/1.5 system-ui, sans-serif; overflow-wrap: anywhere}
.mini-chat div {margin: 4px 0; padding: 6px 10px; border-radius: 10px;
  width: fit-content; max-width: 92%; white-space: pre-wrap; color: #111}
.mini-chat .user {background: #cfe4f7; margin-left: auto}
.mini-chat .assistant {background: #ececec}
.mini-chat .note {background: #fff3c4; font-size: 12px}
.mini-chat .forgotten {color: #555; font-style: italic}
.mini-chat b {font-size: 12px; padding: 1px 6px; border-radius: 8px; margin-left: 6px}
.mini-chat .right {background: #cdeccd; color: #0b4a0b}
.mini-chat .wrong {background: #f7d0c8; color: #6d1200}
.bd-content .mini-live {display: none !important}
</style>"""
SAMPLING = ("temperature", "top_p", "max_new_tokens")
BUTTONS = {  # what the methods of these names do
    "send": "send the line (Enter does the same)",
    "stop": "end the reply where it is",
    "retry": "take the last reply back and ask again",
    "new": "start a new conversation",
    "save": "write the conversation to this file",
    "load": "continue the conversation in this file",
}


def tokens_html(tokens: list[tuple[str, float]]) -> str:
    """Tokens on a background that is paler the more certain the model was of them."""
    parts = []
    for text, share in tokens:
        ground = f"rgb(255, {int(140 + 115 * share)}, {int(60 + 195 * share)})"
        style = f"background:{ground};color:#111;font-style:normal;border-radius:3px"
        shown = html.escape(text).replace("\n", "↵\n")
        parts.append(f"<i style='{style}' title='{share:.2f}'>{shown}</i>")
    return "".join(parts)


def chat_html(
    chat: Chat, pending: str = "", checker: Callable | None = None, tokens: bool = False
) -> str:
    """A conversation and a reply still being made, as HTML; all text is escaped."""
    parts, last = [], len(chat.messages) - 1
    for number, message in enumerate(chat.messages):
        role, content = message["role"], message["content"]
        text = html.escape(content)
        if tokens and role == "assistant" and number == last and not pending:
            text = tokens_html(token_probabilities(chat))
        if checker and role == "assistant" and (verdict := checker(content)):
            mark = "right" if verdict[0] else "wrong"
            text += f"<b class='{mark}'>{html.escape(verdict[1])}</b>"
        if number == chat.forgotten > 0:
            note = "the context is full: the model no longer sees what is above"
            parts.append(f"<div class='note'>{note}</div>")
        faded = " forgotten" if number < chat.forgotten else ""
        said = f"class='{role}{faded}' role='group' aria-label='{role}'"
        parts.append(f"<div {said}>{text}</div>")
    if pending:
        parts.append(f"<div class='assistant'>{html.escape(pending)}▌</div>")
    attributes = "class='mini-chat' role='log' aria-label='conversation'"
    return f"{STYLE}<div {attributes}>{''.join(parts)}</div>"


def build_controls(config: GenerationConfig) -> dict[str, w.Widget]:
    """The text fields, buttons, sliders and check box of a chat window, by name."""
    style, narrow = {"description_width": "initial"}, w.Layout(width="auto")
    wide = w.Layout(flex="1 1 180px", width="auto", min_width="0")
    made = {"entry": w.Text(description="You:", placeholder="Type, then press Enter")}
    for name, tip in BUTTONS.items():
        made[name] = w.Button(description=name.title(), tooltip=tip, layout=narrow)
    made["file"] = w.Text(description="file:", value="runs/chat.jsonl")
    for name in ("entry", "file"):
        made[name].layout, made[name].style = wide, style
    sliders = {
        "temperature": w.FloatSlider(config.temperature, min=0, max=2, step=0.1),
        "top_p": w.FloatSlider(config.top_p, min=0.05, max=1, step=0.05),
        "max_new_tokens": w.IntSlider(config.max_new_tokens, min=1, max=512),
    }
    for name, slider in sliders.items():
        slider.description, slider.style = name.replace("_", " "), style
        slider.layout = w.Layout(max_width="100%")
    box = w.Checkbox(description="show probabilities", indent=False, layout=narrow)
    return {**made, **sliders, "tokens": box}


class ChatWidget:
    """A chat window for notebooks: a column for each chat, and the controls below.

    `other` is a second `Chat` that gets the same messages, such as the base model's.
    `checker(reply)` returns None or (right, text), shown as a badge. Replies are made
    in a thread, so the kernel stays free; `ask(text, wait=True)` waits for them.
    """

    def __init__(
        self,
        chat: Chat,
        other: Chat | None = None,
        checker: Callable[[str], tuple[bool, str] | None] | None = None,
        names: tuple[str, str] = ("tuned", "base"),
    ):
        self.chats = [chat, other] if other else [chat]
        self.names, self.checker = names, checker
        self.worker, self.stopping = threading.Thread(), threading.Event()
        self.panes = [w.HTML(layout=w.Layout(flex="1 1 280px")) for _ in self.chats]
        self.status, self.controls = w.HTML(), build_controls(chat.config)
        wrap = {"flex_flow": "row wrap", "grid_gap": "0 16px"}
        line, made = {**wrap, "align_items": "center"}, list(self.controls.values())
        rows = [w.HBox(row, layout=line) for row in (made[:5], made[8:], made[5:8])]
        for row in rows:
            row.add_class("mini-live")  # hidden on pages without a kernel
        self.box = w.VBox([w.HBox(self.panes, layout=wrap), self.status, *rows])
        for name in BUTTONS:
            self.controls[name].on_click(lambda _, name=name: self.press(name))
        self.controls["entry"].on_msg(
            lambda _, sent, __: sent.get("event") == "submit" and self.press("send")
        )
        for name in SAMPLING:
            self.controls[name].observe(lambda _: self.set_sampling(), names="value")
        self.controls["tokens"].observe(lambda _: self.show(), names="value")
        self.show()

    def show(self, pending: list[str] | None = None, note: str = "") -> None:
        """Draw the conversation as it is now."""
        pending = pending or [""] * len(self.chats)
        tokens, columns = self.controls["tokens"].value, (self.panes, self.chats)
        for pane, chat, name, new in zip(*columns, self.names, pending, strict=False):
            title = f"<b>{html.escape(name)}</b>" if self.chats[1:] else ""
            pane.value = title + chat_html(chat, new, self.checker, tokens)
        reasons = {"length": "cut at max new tokens", "stopped": "stopped"}
        reason = reasons.get(self.chats[0].finish_reason, "")
        self.status.value = html.escape(note or reason)

    def set_sampling(self) -> None:
        """Read the sliders; a temperature of 0 is greedy."""
        values = {name: self.controls[name].value for name in SAMPLING}
        values["do_sample"] = values["temperature"] > 0
        values["temperature"] = values["temperature"] or 1.0
        for chat in self.chats:
            chat.config = replace(chat.config, **values)

    def _repr_mimebundle_(self, **options) -> dict:
        """The live window, and for pages without widgets the conversation as HTML."""
        style = "style='flex:1 1 280px'"
        columns = "".join(f"<div {style}>{pane.value}</div>" for pane in self.panes)
        row = f"<div style='display:flex;flex-wrap:wrap;gap:16px'>{columns}</div>"
        return {**self.box._repr_mimebundle_(**options), "text/html": row}

    @property
    def busy(self) -> bool:
        return self.worker.is_alive()

    def ask(self, text: str, wait: bool = False) -> None:
        """Send `text` to every chat; with `wait`, return when the replies are whole."""
        if self.busy:
            raise RuntimeError("a reply is being made: stop it or wait for it")
        self.stopping.clear()
        self.worker = threading.Thread(target=self._run, args=(text,), daemon=True)
        self.worker.start()
        if wait:
            self.worker.join()

    def _run(self, text: str) -> None:
        note, shown, so_far = "", 0.0, [""] * len(self.chats)
        streams = [chat.stream(text) for chat in self.chats]
        self.show([" "] * len(self.chats))
        try:
            for pieces in zip_longest(*streams, fillvalue=""):
                so_far = [old + new for old, new in zip(so_far, pieces, strict=True)]
                if self.stopping.is_set():
                    break
                if time.monotonic() - shown > 0.05:  # at most 20 pictures a second
                    self.show([reply + " " for reply in so_far])
                    shown = time.monotonic()
        except Exception as error:  # in a thread nobody else would see it
            note = f"{type(error).__name__}: {error}"
        for stream in streams:
            stream.close()
        shortest = min(len(chat.messages) for chat in self.chats)
        for chat in self.chats:  # if one refused the message, none has it
            if len(chat.messages) > shortest:
                chat.undo()
        self.show(note=note)

    def press(self, button: str) -> None:
        """Do what a button says; what goes wrong is shown."""
        try:
            getattr(self, button)()
        except (OSError, ValueError) as error:
            self.show(note=str(error))

    def send(self) -> None:
        entry = self.controls["entry"]
        if (text := entry.value.strip()) and not self.busy:
            entry.value = ""
            self.ask(text)

    def stop(self) -> None:
        self.stopping.set()
        if self.busy:
            self.worker.join()

    def retry(self) -> None:
        if not self.busy:
            for chat in self.chats:
                text = chat.undo()
                if chat.config.seed is not None:  # else the same reply would come
                    chat.config = replace(chat.config, seed=chat.config.seed + 1)
            self.ask(text)

    def new(self) -> None:
        self.stop()
        for chat in self.chats:
            chat.reset()
        self.show()

    def save(self) -> None:
        self.chats[0].save(path := self.controls["file"].value.strip())
        self.show(note=f"saved in {path}")

    def load(self) -> None:
        self.stop()
        for chat in self.chats:
            chat.load(self.controls["file"].value.strip())
        self.show()
