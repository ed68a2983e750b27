"""A chat in a terminal: a line that begins with / is a command, any other is said."""

import cmd
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from minillm.chat import Chat

SLASH_COMMANDS = """\
/reset          begin again             /retry       ask the last question again
/system TEXT    say how to behave       /params temperature=0.8 seed=3
/base           the other model, back   /save FILE   /load FILE   /quit
Ctrl-C stops a reply; the arrow keys bring back earlier lines."""


def print_reply(chat: Chat, text: str) -> None:
    """Send a text and print the reply as it is made; Ctrl-C stops it."""
    seen = chat.forgotten
    try:
        for piece in chat.stream(text):
            print(piece, end="", flush=True)
        print(" (cut at max_new_tokens)" * (chat.finish_reason == "length"))
    except KeyboardInterrupt:
        print(" (stopped)")
    if chat.forgotten > seen:
        print(f"(the context is full: the first {chat.forgotten} messages are out)")


class Terminal(cmd.Cmd):
    """A conversation by lines; `other()` makes the chat that /base changes to."""

    def __init__(self, chat: Chat, other: Callable[[], Chat] | None = None):
        super().__init__()
        self.chat, self.other = chat, other
        self.prompt = "> " if sys.stdin.isatty() else ""

    def parseline(self, line: str) -> tuple[str | None, str, str]:
        """The command, if there is one, what follows it, and the whole line."""
        if line == "EOF":  # so `Cmd` calls the end of the input
            return "quit", "", line
        name, _, rest = line[1:].partition(" ")
        return name if line.startswith("/") else None, rest.strip(), line

    def onecmd(self, line: str) -> bool | None:
        """Obey a line; True ends the conversation. An error is printed as a line."""
        try:
            return bool(line.strip() and super().onecmd(line.strip()))
        except (OSError, TypeError, ValueError) as error:
            print(f"({error})")

    def default(self, line: str) -> None:
        if line.startswith("/"):
            raise ValueError(f"no command {line.split()[0]}; /help lists them")
        print_reply(self.chat, line)

    def do_help(self, rest: str) -> None:
        print(SLASH_COMMANDS)

    def do_reset(self, rest: str) -> None:
        self.chat.reset()

    def do_retry(self, rest: str) -> None:
        print_reply(self.chat, self.chat.undo())

    def do_system(self, rest: str) -> None:
        self.chat.system = rest or None
        self.chat.reset()
        print(f"(started again: {rest or 'no system message'})")

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

    def do_save(self, rest: str) -> None:
        self.chat.save(rest or "runs/chat.jsonl")
        print(f"(saved in {rest or 'runs/chat.jsonl'})")

    def do_load(self, rest: str) -> None:
        self.chat.load(rest or "runs/chat.jsonl")
        for message in self.chat.messages:
            print(">" * (message["role"] == "user"), message["content"])

    def do_quit(self, rest: str) -> bool:
        return True

    do_exit = do_quit
    completenames = cmd.Cmd.completedefault  # Tab completes nothing


def converse(chat: Chat, other: Callable[[], Chat] | None = None) -> None:
    """Talk in a terminal until /quit, the end of the input, or Ctrl-C."""
    with suppress(KeyboardInterrupt):
        Terminal(chat, other).cmdloop()
    print()
