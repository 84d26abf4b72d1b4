"""Commands about checkpoints: list, verify, show, prune."""

from __future__ import annotations

import argparse

from rankmixer.launch.commands.grammar import Commands, add_json


def add_checkpoints(commands: Commands) -> None:
    """`rankmixer checkpoint`."""
    group = commands.group(
        "checkpoint", "Look at checkpoints, or remove some.", "rankmixer checkpoint list runs/ml-100k"
    )
    where = "directory or URL of a run, of its checkpoints, or of one of them"

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        parser = group.add(name, _run, summary, f"rankmixer checkpoint {example}")
        parser.add_argument("where", help=where)
        add_json(parser)
        return parser

    add(
        "list",
        "List checkpoints: step, metric, bytes, age, the best and the latest, and whether files have their sizes.",
        "list runs/ml-100k",
    )
    add(
        "verify",
        "Read every byte and compare it with its checksum; status 1 and the file's name if one is damaged.",
        "verify runs/ml-100k/checkpoints/step-00000120",
    )
    add("show", "Show what a checkpoint holds, of a run that of the latest.", "show runs/ml-100k --json")
    prune = add(
        "prune",
        "Remove all but the last N and the best, and what killed saves left. Damaged ones stay.",
        "prune runs/ml-100k --keep 1 --dry-run",
    )
    prune.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the latest to keep")
    prune.add_argument("--dry-run", action="store_true", help="remove nothing, say what would be")


def _run(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.commands import checkpoint_command as command

    where, as_json = arguments.where, arguments.json
    if arguments.checkpoint_command == "list":
        command.list_checkpoints(where, as_json=as_json)
    elif arguments.checkpoint_command == "verify":
        command.verify_checkpoints(where, as_json=as_json)
    elif arguments.checkpoint_command == "show":
        command.show_checkpoint(where, as_json=as_json)
    else:
        command.prune_checkpoints(where, arguments.keep, is_dry_run=arguments.dry_run, as_json=as_json)
