"""A conversation that remembers: turns, a cache that is reused, and a chat window."""

# Generated from notebooks/11_chat.ipynb: edit that, then `make build`.

# %% auto #0
__all__ = [
    "CHAT_CONFIG",
    "STYLE",
    "Checker",
    "TIPS",
    "HELP",
    "common_prefix",
    "fit_context",
    "Conversation",
    "Chat",
    "token_probabilities",
    "tokens_html",
    "badge_html",
    "chat_html",
    "speak_together",
    "build_controls",
    "ChatWindow",
    "ChatWidget",
    "send",
    "retry",
    "start_anew",
    "save_file",
    "load_file",
    "connect",
    "print_reply",
    "Terminal",
    "typed_lines",
    "converse",
]

# %%
import html
import json
import sys
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
def common_prefix(first: list[int], second: list[int]) -> int:
    """How many ids two sequences begin with alike."""
    length = min(len(first), len(second))
    return next((n for n in range(length) if first[n] != second[n]), length)


# %%
def fit_context(
    template: ChatTemplate,
    head: list[dict],
    messages: list[dict],
    limit: int,
    forgotten: int = 0,
) -> tuple[list[int], int]:
    """Ids of the prompt in at most `limit` tokens, and how many messages it leaves out.

    `head`, the system message, always stays; the oldest exchanges go first, and those
    `forgotten` before do not come back. Raises `ValueError` if the last message does
    not fit even alone.
    """
    for start in range(forgotten, len(messages), 2):
        seen = head + messages[start:]
        ids, _ = template.encode(seen, add_generation_prompt=True)
        if len(ids) <= limit:
            return ids, start
    raise ValueError(
        f"the message is too long: {len(ids)} tokens, with its marks and any system "
        f"message, where the context has room for {limit} and a reply"
    )


# %%
class Conversation:
    """Messages, which of them still fit the context, and a file to keep them in.

    `messages` holds all of it. When it no longer fits, the oldest turns are left out
    of the prompt; `forgotten` counts those messages.
    """

    def __init__(self, tokenizer, context: int, system: str | None = None):
        self.tokenizer, self.template = tokenizer, ChatTemplate(tokenizer)
        self.context, self.system = context, system
        self.reset()

    def reset(self) -> None:
        """Begin anew; the system message stays."""
        self.messages, self.forgotten = [], 0

    @property
    def head(self) -> list[dict]:
        """The system message, if there is one."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def prompt(self, room: int) -> list[int]:
        """Ids of what is seen, with space for `room` more; sets `forgotten`."""
        limit, parts = self.context - room, (self.template, self.head, self.messages)
        ids, self.forgotten = fit_context(*parts, limit, self.forgotten)
        return ids

    def undo(self) -> str:
        """Take back the last exchange; return what the user had said."""
        if not self.messages:
            raise ValueError("there is nothing to take back: no message was sent yet")
        *self.messages, question, _ = self.messages
        self.forgotten = min(self.forgotten, len(self.messages))
        return question["content"]

    def save(self, path: str | Path) -> None:
        """Write the conversation as a line that chapter 10 can train on."""
        if not self.messages:
            raise ValueError("there is nothing to save: no message was sent yet")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl([{"conversations": self.head + self.messages}], path)

    def load(self, path: str | Path) -> None:
        """Go on with a conversation that `save` wrote."""
        messages = next(read_conversations(path), {}).get("conversations")
        if not messages:
            raise ValueError(f"{path} holds no conversation")
        self.reset()
        self.system = None
        if messages[0]["role"] == "system":
            self.system = messages.pop(0)["content"]
        self.messages = messages


# %%
CHAT_CONFIG = GenerationConfig(max_new_tokens=160, temperature=0.6)


class Chat(Conversation):
    """A conversation with a model, whose cache is kept from turn to turn.

    After a reply, `finish_reason` is "stop" (the model ended it), "length" or "stopped"
    (by the caller), and `reused` counts the tokens of the prompt that the cache had.
    """

    def __init__(
        self,
        model,
        tokenizer,
        system: str | None = None,
        config: GenerationConfig = CHAT_CONFIG,
    ):
        self.model, self.config = model.eval(), config
        super().__init__(tokenizer, model.config.max_position_embeddings, system)

    def reset(self) -> None:
        """Begin anew; the system message stays."""
        super().reset()
        self.cache, self.cached = self.model.new_cache(), []
        self.finish_reason, self.reused = None, 0

    def stream(self, text: str) -> Iterator[str]:
        """Say `text`; yield the reply piece by piece. Closing it stops the model."""
        self.messages.append({"role": "user", "content": text})
        try:
            ids = self.prompt(min(self.config.max_new_tokens, self.context // 4))
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

    def _continue(self, ids: list[int]) -> Iterator[int]:
        """Ids of the reply. Only what the cache does not hold yet is computed."""
        held = min(layer.length for layer in self.cache)
        self.reused = min(common_prefix(self.cached, ids), held, len(ids) - 1)
        for layer in self.cache:
            layer.crop(self.reused)
        self.cached, ends = list(ids), (self.template.end_token_id,)
        longest = min(self.config.max_new_tokens, self.context - len(ids))
        ends += (self.tokenizer.eos_token_id,)
        config = replace(self.config, eos_token_id=ends, max_new_tokens=longest)
        prompt = torch.tensor([ids], device=self.model.lm_head.weight.device)
        for number in stream_ids(self.model, prompt, config, self.cache):
            self.cached.append(number)
            yield number
        if len(self.cached) - len(ids) == longest:
            self.finish_reason = "length"


# %%
@torch.inference_mode()
def token_probabilities(chat: Chat) -> list[tuple[str, float]]:
    """The tokens of the last reply and its end, each with its probability."""
    seen = chat.head + chat.messages[chat.forgotten :]
    ids, learned = chat.template.encode(seen)
    start = len(chat.template.encode(seen[:-1], add_generation_prompt=True)[0])
    inputs = torch.tensor([ids], device=chat.model.lm_head.weight.device)
    shares = chat.model(inputs)[0, :-1].float().softmax(-1)  # (T - 1, V)
    return [
        (chat.tokenizer.decode([ids[t]]), shares[t - 1, ids[t]].item())
        for t in range(start, len(ids))
        if learned[t]
    ]


def tokens_html(tokens: list[tuple[str, float]]) -> str:
    """Tokens on a ground that is the paler, the surer the model was of them."""
    parts = []
    for text, share in tokens:
        ground = f"rgb(255, {int(140 + 115 * share)}, {int(60 + 195 * share)})"
        style = f"background:{ground};color:#111;font-style:normal;border-radius:3px"
        shown = html.escape(text).replace("\n", "↵\n")
        parts.append(f"<i style='{style}' title='{share:.2f}'>{shown}</i>")
    return "".join(parts)


# %%
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

Checker = Callable[[str], tuple[bool, str] | None]


# %%
def badge_html(verdict: tuple[bool, str] | None) -> str:
    """What a checker says of a reply, as a small colored mark."""
    if verdict is None:
        return ""
    right, text = verdict
    return f"<b class='{'right' if right else 'wrong'}'>{html.escape(text)}</b>"


def chat_html(
    chat: Chat, pending: str = "", checker: Checker | None = None, tokens: bool = False
) -> str:
    """A conversation as HTML; whatever was typed or generated is shown as text."""
    parts, last = [], len(chat.messages) - 1
    for number, message in enumerate(chat.messages):
        role, content = message["role"], message["content"]
        text = html.escape(content)
        if tokens and role == "assistant" and number == last and not pending:
            text = tokens_html(token_probabilities(chat))
        if checker and role == "assistant":
            text += badge_html(checker(content))
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


# %%
def speak_together(chats: list[Chat], text: str) -> Iterator[list[str]]:
    """Say `text` to every chat; yield what each has replied so far. May be closed."""
    so_far = [""] * len(chats)
    streams = [chat.stream(text) for chat in chats]
    try:
        for pieces in zip_longest(*streams, fillvalue=""):
            so_far = [old + new for old, new in zip(so_far, pieces, strict=True)]
            yield so_far
    finally:
        for stream in streams:
            stream.close()
        shortest = min(len(chat.messages) for chat in chats)
        for chat in chats:  # if one refused the message, none has it
            if len(chat.messages) > shortest:
                chat.undo()


# %%
TIPS = {
    "send": "say what stands in the line (Enter does the same)",
    "stop": "end the reply where it is",
    "retry": "take the last reply back and ask again",
    "new": "begin a new conversation",
    "save": "write the conversation to this file",
    "load": "go on with the conversation in this file",
}


def build_controls(config: GenerationConfig) -> dict:
    """The entry, buttons, sliders and check box of a chat window, by name."""
    import ipywidgets as w  # only the window needs it, a terminal does not

    made, narrow = {}, w.Layout(width="auto")
    hints = {"entry": "Say something, then press Enter", "file": "a .jsonl file"}
    for (name, hint), width in zip(hints.items(), (200, 160), strict=True):
        made[name] = w.Text(placeholder=hint, description=f"{name}:")
        made[name].layout = w.Layout(flex=f"1 1 {width}px", width="auto", min_width="0")
    made["entry"].description, made["file"].value = "You:", "runs/chat.jsonl"
    for name, tip in TIPS.items():
        made[name] = w.Button(description=name.title(), tooltip=tip, layout=narrow)
    made["temperature"] = w.FloatSlider(config.temperature, min=0, max=2, step=0.1)
    made["top_p"] = w.FloatSlider(config.top_p, min=0.05, max=1, step=0.05)
    made["max_new_tokens"] = w.IntSlider(config.max_new_tokens, min=1, max=512)
    for name in ("temperature", "top_p", "max_new_tokens"):
        made[name].description = name.replace("_", " ")
        made[name].layout = w.Layout(max_width="100%")
    made["tokens"] = w.Checkbox(description="show probabilities", indent=False)
    made["tokens"].layout = narrow
    for name in ("entry", "file", "temperature", "top_p", "max_new_tokens"):
        made[name].style = {"description_width": "initial"}
    return made


# %%
class ChatWindow:
    """What a chat window looks like: a column for each chat, and the controls below."""

    def __init__(
        self, chats: list[Chat], names: tuple[str, ...], checker: Checker | None
    ):
        import ipywidgets as w

        self.chats, self.names, self.checker = chats, names, checker
        self.panes = [w.HTML(layout=w.Layout(flex="1 1 280px")) for _ in chats]
        self.status, self.controls = w.HTML(), build_controls(chats[0].config)
        wrap = w.Layout(flex_flow="row wrap", align_items="center")
        places = (
            ("entry", "send", "stop", "retry", "new"),
            ("temperature", "top_p", "max_new_tokens", "tokens"),
            ("file", "save", "load"),
        )
        rows = [w.HBox([self.controls[k] for k in ks], layout=wrap) for ks in places]
        for row in rows:
            row.add_class("mini-live")  # hidden on pages without a kernel
        side_by_side = w.Layout(flex_flow="row wrap", grid_gap="0 16px")
        columns = w.HBox(self.panes, layout=side_by_side)
        self.box = w.VBox([columns, self.status, *rows])
        self.show()

    def show(self, pending: list[str] | None = None, note: str = "") -> None:
        """Draw the conversation as it stands."""
        pending = pending or [""] * len(self.chats)
        tokens, parts = self.controls["tokens"].value, (self.chats, self.names)
        for pane, chat, name, new in zip(self.panes, *parts, pending, strict=False):
            title = f"<b>{html.escape(name)}</b>" if self.chats[1:] else ""
            pane.value = title + chat_html(chat, new, self.checker, tokens)
        reasons = {"length": "cut at its longest", "stopped": "stopped"}
        reason = reasons.get(self.chats[0].finish_reason or "", "")
        self.status.value = html.escape(note or reason)

    def set_sampling(self) -> None:
        """Take over the sliders; a temperature of 0 is greedy."""
        names = ("temperature", "top_p", "max_new_tokens")
        values = {name: self.controls[name].value for name in names}
        values["do_sample"] = values["temperature"] > 0
        values["temperature"] = values["temperature"] or 1.0
        for chat in self.chats:
            chat.config = replace(chat.config, **values)

    def _repr_mimebundle_(self, **options) -> dict:
        """The live window, and for pages without widgets the conversation as HTML."""
        bundle = self.box._repr_mimebundle_(**options)
        column = "<div style='flex:1 1 280px'>{}</div>"
        columns = "".join(column.format(pane.value) for pane in self.panes)
        row = f"<div style='display:flex;flex-wrap:wrap;gap:16px'>{columns}</div>"
        return {**bundle, "text/html": row}


# %%
class ChatWidget(ChatWindow):
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
        self.worker: threading.Thread | None = None
        self.stopping = threading.Event()
        super().__init__([chat, other] if other else [chat], names, checker)
        connect(self)

    @property
    def busy(self) -> bool:
        return self.worker is not None and self.worker.is_alive()

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
        note, shown, replies = "", 0.0, speak_together(self.chats, text)
        self.show([" "] * len(self.chats))
        try:
            for so_far in replies:
                if self.stopping.is_set():
                    break
                if time.monotonic() - shown > 0.05:  # at most 20 pictures a second
                    self.show([reply + " " for reply in so_far])
                    shown = time.monotonic()
        except Exception as error:  # in a thread nobody else would see it
            note = f"{type(error).__name__}: {error}"
        finally:
            replies.close()
            self.show(note=note)

    def stop(self) -> None:
        """Have the replies end where they are, and wait until they have."""
        self.stopping.set()
        if self.busy:
            self.worker.join()


# %%
def send(window: ChatWidget) -> None:
    """Send what stands in the entry."""
    entry = window.controls["entry"]
    if (text := entry.value.strip()) and not window.busy:
        entry.value = ""
        window.ask(text)


def retry(window: ChatWidget) -> None:
    """Take back the last exchange and ask the same again."""
    if not window.busy and window.chats[0].messages:
        for chat in window.chats:
            text = chat.undo()
            if chat.config.seed is not None:  # else the same reply would come
                chat.config = replace(chat.config, seed=chat.config.seed + 1)
        window.ask(text)


def start_anew(window: ChatWidget) -> None:
    """Begin a new conversation."""
    window.stop()
    for chat in window.chats:
        chat.reset()
    window.show()


# %%
def save_file(window: ChatWidget) -> None:
    """Write the first chat's conversation to the file that is named below."""
    path = window.controls["file"].value.strip()
    try:
        window.chats[0].save(path)
        window.show(note=f"saved in {path}")
    except (OSError, ValueError) as error:
        window.show(note=str(error))


def load_file(window: ChatWidget) -> None:
    """Have every chat go on with the conversation in that file."""
    window.stop()
    try:
        for chat in window.chats:
            chat.load(window.controls["file"].value.strip())
        window.show()
    except (OSError, ValueError) as error:
        window.show(note=str(error))


def connect(window: ChatWidget) -> None:
    """Give every control of a chat window its action."""
    controls = window.controls
    actions = {"send": send, "stop": ChatWidget.stop, "retry": retry, "new": start_anew}
    actions |= {"save": save_file, "load": load_file}
    for name, action in actions.items():
        controls[name].on_click(lambda _, action=action: action(window))
    controls["entry"].on_msg(
        lambda _, content, __: content.get("event") == "submit" and send(window)
    )
    for name in ("temperature", "top_p", "max_new_tokens"):
        controls[name].observe(lambda _: window.set_sampling(), names="value")
    controls["tokens"].observe(lambda _: window.show(), names="value")


# %%
HELP = """\
/reset          begin anew              /retry       ask the last question again
/system TEXT    say how to behave       /params temperature=0.8 seed=3
/base           the other model, back   /save FILE   /load FILE   /quit
Ctrl-C stops a reply; the arrow keys bring back earlier lines."""


def print_reply(chat: Chat, text: str) -> None:
    """Say a text and print the reply as it comes; Ctrl-C stops it."""
    seen = chat.forgotten
    try:
        for piece in chat.stream(text):
            print(piece, end="", flush=True)
        print(" (cut at its longest)" * (chat.finish_reason == "length"))
    except KeyboardInterrupt:
        print(" (stopped)")
    if chat.forgotten > seen:
        print(f"(the context is full: the first {chat.forgotten} messages are out)")


# %%
class Terminal:
    """A conversation by lines: those that begin with / are commands.

    `other()` makes the chat that /base changes to, such as the base model's.
    """

    def __init__(self, chat: Chat, other: Callable[[], Chat] | None = None):
        self.chat, self.other = chat, other
        names = [name for name in dir(self) if name.startswith("do_")]
        self.commands = {
            name.removeprefix("do_"): getattr(self, name) for name in names
        }

    def obey(self, line: str) -> bool:
        """Do what a line says; False if it says to leave."""
        name, _, rest = line[1:].partition(" ")
        if line.startswith("/") and name in ("quit", "exit"):
            return False
        try:
            if not line.startswith("/"):
                print_reply(self.chat, line)
            elif name in self.commands:
                self.commands[name](rest.strip())
            else:
                print(f"(no command /{name}; /help lists them)")
        except (OSError, TypeError, ValueError) as error:
            print(f"({error})")
        return True

    def do_help(self, rest: str) -> None:
        print(HELP)

    def do_reset(self, rest: str) -> None:
        self.chat.reset()

    def do_retry(self, rest: str) -> None:
        print_reply(self.chat, self.chat.undo())

    def do_system(self, rest: str) -> None:
        self.chat.system = rest or None
        self.chat.reset()
        print(f"(begun anew: {rest or 'no system message'})")

    def do_save(self, rest: str) -> None:
        self.chat.save(rest or "runs/chat.jsonl")
        print(f"(saved in {rest or 'runs/chat.jsonl'})")

    def do_load(self, rest: str) -> None:
        self.chat.load(rest or "runs/chat.jsonl")
        for message in self.chat.messages:
            print(">" * (message["role"] == "user"), message["content"])

    def do_params(self, rest: str) -> None:
        given = dict(pair.partition("=")[::2] for pair in rest.split())
        fields = vars(self.chat.config)
        if unknown := given.keys() - fields.keys():
            known = ", ".join(fields)
            raise ValueError(f"no setting {unknown.pop()}; there are {known}")
        values = {name: json.loads(value) for name, value in given.items()}
        self.chat.config = replace(self.chat.config, **values)
        print(*(f"{k}={v}" for k, v in vars(self.chat.config).items() if v != ()))

    def do_base(self, rest: str) -> None:
        if self.other is None:
            raise ValueError("there is no other model to change to")
        now, other = self.chat, self.other()
        other.system, other.messages = now.system, list(now.messages)
        self.chat, self.other = other, lambda: now
        print("(changed to the other model; /base changes back)")


# %%
def typed_lines(prompt: str = "> ") -> Iterator[str]:
    """Lines that are typed, with their history, or piped in; empty ones left out."""
    try:
        import readline  # noqa: F401  with it, the arrow keys bring back lines
    except ImportError:
        pass
    while True:
        try:
            line = input(prompt if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line:
            yield line


def converse(chat: Chat, other: Callable[[], Chat] | None = None) -> None:
    """Talk in a terminal until /quit, the end of the input, or Ctrl-C."""
    terminal = Terminal(chat, other)
    for line in typed_lines():
        if not terminal.obey(line):
            return
