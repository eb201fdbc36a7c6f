"""How a person names a data set, and a recipe to look at it with."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from mrcnn_cli.commands.console import set_option


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """DATA, or --images and --annotations."""
    for decorate in (
        click.option(
            "--annotations",
            multiple=True,
            type=click.Path(path_type=Path),
            metavar="FILE",
            show_default="those of DATA",
            help="The COCO file of the images; once for each of their folders, in that order.",
        ),
        click.option(
            "--images",
            multiple=True,
            type=click.Path(path_type=Path),
            metavar="DIR",
            show_default="those of DATA",
            help="A folder of images, instead of DATA; may be repeated, for several splits.",
        ),
        click.argument("data", required=False, type=click.Path(path_type=Path)),
    ):
        command = decorate(command)
    return command


def recipe_options(purpose: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--recipe and --set; `purpose` says what is taken from it."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        option = click.option(
            "--recipe",
            metavar="RECIPE",
            show_default="the one that 'mrcnn train' takes for your own data",
            help=f"A recipe's name or file: {purpose}.",
        )
        return option(set_option("data.resize.short_side=800")(command))

    return decorate


def workers_option(purpose: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--workers, one for each core unless it is given; `purpose` says what they do."""
    return click.option(
        "--workers",
        type=click.IntRange(min=0),
        metavar="NUMBER",
        callback=lambda context, parameter, given: len(os.sched_getaffinity(0)) if given is None else given,
        show_default="one for each CPU core",
        help=f"Processes that {purpose}.",
    )


def chosen_recipe(recipe: str | None, assignments: tuple[str, ...]) -> tuple[str, Any]:
    """The recipe's name and its config."""
    from mrcnn_cli.engine.run import default_recipe, read_config

    name = recipe or default_recipe(own_data=True)[0]
    return name, read_config(name, assignments)
