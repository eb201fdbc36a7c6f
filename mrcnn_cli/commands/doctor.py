"""mrcnn doctor: is everything there that mrcnn needs?"""

import dataclasses

import click
from rich.text import Text

from mrcnn_cli.commands.console import Verb, json_option, print_json, say_error, table

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor", cls=Verb, examples=["mrcnn doctor"])
@json_option
def command(as_json: bool) -> int:
    """Check this machine and this installation; exits with 1 if something needed is broken."""
    from mrcnn_cli.engine.doctor import examine

    facts = list(examine())
    failed = [fact.name for fact in facts if fact.status == "fail"]
    if as_json:
        print_json([dataclasses.asdict(fact) for fact in facts])
    else:
        rows = [
            (
                Text(fact.status, style=COLOURS[fact.status]),
                fact.name,
                f"{fact.value} - {fact.advice}" if fact.advice else fact.value,
            )
            for fact in facts
        ]
        table("", ["", "what", "found"], rows)
    if failed:
        say_error(f"{', '.join(failed)}: broken; do what stands beside it")
    return int(bool(failed))
