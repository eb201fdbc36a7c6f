"""mrcnn config: the recipes - which there are, what they hold, whether they are sound."""

from pathlib import Path

import click

from mrcnn_cli.commands.console import Verb, Verbs, json_option, print_json, say_error, set_option, table
from mrcnn_cli.errors import UserError

command = Verbs(
    "config",
    help="List, show and check recipes.",
    examples=["mrcnn config list", "mrcnn config show nuclei --set train.steps=600 > mine.toml"],
)


@command.command("list", cls=Verb, examples=["mrcnn config list"])
@json_option
def list_recipes(as_json: bool) -> None:
    """List the shipped recipes with the first line of their comments."""
    from mrcnn_cli import config as recipes

    rows = [(name, _headline(path)) for name, path in recipes.recipes().items()]
    if as_json:
        print_json([{"name": name, "about": about} for name, about in rows])
    else:
        table("", ["recipe", "about"], rows)


@command.command("show", cls=Verb, examples=["mrcnn config show nuclei --set train.steps=600"])
@click.argument("recipe")
@set_option("train.steps=600")
@json_option
def show(recipe: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe as TOML with every default filled in.

    RECIPE is a shipped recipe's name, a TOML file or a run's folder.
    """
    from mrcnn_cli import config as recipes
    from mrcnn_cli.engine.run import read_config

    config = read_config(recipe, assignments)
    if as_json:
        print_json(config.model_dump(mode="json"))
    else:
        click.echo(recipes.dumps(config), nl=False)


@command.command("check", cls=Verb, examples=["mrcnn config check mine.toml"])
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@json_option
def check(files: tuple[str, ...], as_json: bool) -> int:
    """Check recipes; exits with 1 if one of them has a fault.

    FILE is a TOML file, a shipped recipe's name or a run's folder.
    """
    from mrcnn_cli.engine.run import read_config

    faults: dict[str, str | None] = {}
    for file in files:
        try:
            read_config(file)
            faults[file] = None
        except UserError as error:
            faults[file] = str(error)
    if as_json:
        print_json([{"file": file, "ok": fault is None, "error": fault} for file, fault in faults.items()])
    else:
        for file, fault in faults.items():
            if fault is None:
                click.echo(f"{file}: ok")
            else:
                say_error(fault)
    return int(any(faults.values()))


@command.command("schema", cls=Verb, examples=["mrcnn config schema > mrcnn.schema.json"])
def schema() -> None:
    """Print the JSON schema of recipes, for editors that complete and check TOML."""
    from mrcnn_cli.engine.run import RunConfig

    print_json(RunConfig.model_json_schema())


def _headline(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""
