"""The command `minillm`: a table of subcommands, their options, errors in one line."""

import ast
import json
import os
import re
import sys
import warnings
from argparse import ArgumentError
from importlib.util import find_spec
from pathlib import Path

from minillm.app.console import show_warning
from minillm.app.errors import explain, is_expected, naming, need
from minillm.app.plugins import find_object, see_this_folder

COMMANDS = {  # a name of one or two words -> the function that it calls
    "data make": "minillm.app.commands.data:make_data",
    "data inspect": "minillm.app.commands.data:inspect_data",
    "data convert": "minillm.app.commands.data:convert_data",
    "data split": "minillm.app.commands.data:split_data",
    "tokenizer train": "minillm.app.commands.tokenizer:train_tokenizer",
    "tokenizer encode": "minillm.app.commands.tokenizer:encode_text",
    "tokenizer inspect": "minillm.app.commands.tokenizer:inspect_tokenizer",
    "pretrain": "minillm.app.commands.pretrain:pretrain",
    "generate": "minillm.app.commands.generate:generate_text",
    "sft": "minillm.app.commands.sft:sft",
    "chat": "minillm.app.commands.chat:chat",
    "doctor": "minillm.app.doctor:doctor",
}
HELP = ("-h", "--help", "help")


def run_command(name: str, options: list[str]) -> int:
    """Parse the options of a command and call its function.

    Its arguments are the options. Those of a dataclass are options too, if the function
    makes it from `**settings`; the module's DEFAULTS are values that differ from its.
    """
    import jsonargparse

    if "--config" in options[:-1]:
        check_settings_file(options[options.index("--config") + 1], name)
    function = find_object(COMMANDS[name])
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        code = jsonargparse.auto_cli(
            function,
            args=options,
            as_positional=True,
            config_help="JSON file of these options",
            set_defaults=getattr(sys.modules[function.__module__], "DEFAULTS", None),
            prog=f"minillm {name}",
            allow_abbrev=False,
            exit_on_error=False,
            parser_mode="json",
        )
    except ArgumentError as error:
        raise ValueError(f"{plainly(error)}; see `minillm {name} --help`") from error
    return code or 0


def check_settings_file(path: str, name: str) -> None:
    """A file for --config must exist, and contain one JSON object."""
    command = f"minillm {name} --print_config"
    with naming(need(path, command), f"write it as `{command}` prints it"):
        if not isinstance(json.loads(Path(path).read_text(encoding="utf-8")), dict):
            raise ValueError("not a JSON object")


def plainly(error: ArgumentError) -> str:
    """A parser's complaint about a value, as `--max_steps=many is not int`."""
    found = re.match(r'Parser key "(\w+)":.*value: (\S+)', str(error), re.DOTALL)
    if not found:
        return str(error)
    kinds = dict.fromkeys(re.findall(r"<class '(\w+)'>", str(error).split("Given")[0]))
    wanted = " or ".join("null" if kind == "NoneType" else kind for kind in kinds)
    return f"--{found[1]}={found[2]} is not {wanted or 'of the right type'}"


def split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """["data", "make", "--seed", "1"] -> ("data make", ["--seed", "1"])."""
    for length in (2, 1):
        if (name := " ".join(arguments[:length])) in COMMANDS:
            return name, arguments[length:]
    given, known = " ".join(arguments[:2]), ", ".join(commands_of(arguments))
    raise ValueError(f"no command {given!r}; choose one of: {known}")


def commands_of(arguments: list[str]) -> list[str]:
    """The commands whose first word is the first argument; all if there are none."""
    group = [name for name in COMMANDS if name.split()[:1] == arguments[:1]]
    return group or list(COMMANDS)


def asks_for_overview(arguments: list[str]) -> bool:
    """Whether `arguments` ask for help on all commands, or on a group such as data."""
    if not arguments or arguments[0] in HELP:
        return True
    return arguments[0] not in COMMANDS and " ".join(arguments[1:]) in HELP


def overview(names: list[str]) -> str:
    """What `minillm --help` prints: a line for each command."""
    head = "usage: minillm COMMAND [options]      minillm COMMAND --help\n"
    lines = [f"  {name:18} {summary(name)}" for name in names]
    return "\n".join([head, *lines, "\n  --traceback        show where an error arose"])


def summary(name: str) -> str:
    """The first line of a command's docstring, without importing what it needs."""
    see_this_folder()
    module, _, function = COMMANDS[name].partition(":")
    parsed = ast.parse(Path(find_spec(module).origin).read_text(encoding="utf-8"))
    (found,) = (x for x in parsed.body if getattr(x, "name", "") == function)
    return ast.get_docstring(found).splitlines()[0]


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code: 2 for an error, reported in one line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    developer = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    if asks_for_overview(arguments):
        print(overview(commands_of(arguments)))
        return 0
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            return run_command(*split_command(arguments))
    except SystemExit as done:  # after --help
        return int(done.code or 0)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("\nminillm: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if developer or not is_expected(error):
            raise
        print(f"minillm: {explain(error)}", file=sys.stderr)
        return 2
