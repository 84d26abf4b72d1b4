"""How a command is added to `rankmixer`: its grammar, its example and what it does, in one place."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeAlias

Command = Callable[[argparse.Namespace], None]
Parsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


class Commands:
    """The commands of one level: those of `rankmixer`, or those of a group such as `rankmixer data`.

    Args:
        parser: of that level.
        dest: the attribute of the parsed arguments that holds the command's name.
        metavar: what the usage line calls it.

    >>> root = argparse.ArgumentParser(prog="rankmixer")
    >>> commands = Commands(root, dest="name", metavar="COMMAND")
    >>> greet = commands.add("greet", lambda arguments: print("hello", arguments.whom), "Greet.", "rankmixer greet you")
    >>> _ = greet.add_argument("whom")
    >>> parsed = root.parse_args(["greet", "you"])
    >>> parsed.command(parsed)
    hello you
    """

    def __init__(self, parser: argparse.ArgumentParser, *, dest: str, metavar: str) -> None:
        self._parsers: Parsers = parser.add_subparsers(required=True, metavar=metavar, dest=dest)

    def add(self, name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
        """A command; its arguments are added to what is returned.

        Args:
            name: as typed.
            command: called with the parsed arguments; it imports what it needs, so that `--help` is there at once.
            summary: one sentence, shown by `--help` here and one level up.
            example: a command line that works, shown at the end of `--help`.
        """
        parser = self._parser(name, summary, example)
        parser.set_defaults(command=command)
        return parser

    def group(self, name: str, summary: str, example: str, *, metavar: str = "COMMAND") -> Commands:
        """A command that has commands of its own: `rankmixer NAME COMMAND`."""
        return Commands(self._parser(name, summary, example), dest=f"{name}_command", metavar=metavar)

    def _parser(self, name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return self._parsers.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )


def add_config(parser: argparse.ArgumentParser) -> None:
    """The arguments of a command that works with a configuration."""
    parser.add_argument("--config", required=True, help="configuration file")
    parser.add_argument("overrides", nargs="*", help="section.key=value, overriding the configuration")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The argument of a command that prints for people; rankmixer.launch.report.output.show prints for both."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on one line, and nothing else")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The argument of a command that uses the weights of a run."""
    parser.add_argument("--checkpoint", default="best", help="best (default), latest or a name")


def columns(text: str) -> list[str]:
    """An argument that names columns, separated by commas.

    >>> columns("user_id,item_id")
    ['user_id', 'item_id']
    """
    return [column for column in text.split(",") if column]
