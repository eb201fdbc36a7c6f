"""mrcnn data view: a data set as one page for the browser."""

from pathlib import Path

import click

from mrcnn_cli.commands.console import Verb, json_option, print_json, say, typed_path
from mrcnn_cli.commands.data.source import chosen_recipe, recipe_options, source_options, workers_option
from mrcnn_cli.commands.progress import Counter
from mrcnn_cli.errors import UserError


@click.command(
    "view",
    cls=Verb,
    examples=[
        "mrcnn data view data",
        "mrcnn data view data --predictions evaluation/results.json",
        "mrcnn data view data --augmented --recipe nuclei --limit 200",
    ],
)
@source_options
@click.option("--split", "split", metavar="NAME", show_default="all", help="Show this split only.")
@click.option(
    "--predictions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="none",
    help="A COCO results list to show beside the truth, as evaluation and prediction write it.",
)
@click.option(
    "--score",
    type=click.FloatRange(0, 1),
    default=0.5,
    metavar="SCORE",
    help="Lowest score of the predictions.",
)
@click.option("--augmented", is_flag=True, help="Show training samples instead, varied as the recipe says.")
@recipe_options("its augmentation is shown")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    show_default="10000, of training samples 100",
    help="Most pictures; of more, evenly spaced ones are shown.",
)
@click.option(
    "--side",
    type=click.IntRange(32, 4096),
    metavar="PIXELS",
    show_default="what keeps all together below 64 MB, 1024 at most",
    help="Longest side of the pictures in the page.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="<name of the data set>.html",
    help="The page.",
)
@workers_option("read pictures")
@json_option
def command(
    data: Path | None,
    images: tuple[Path, ...],
    annotations: tuple[Path, ...],
    split: str | None,
    predictions: Path | None,
    score: float,
    augmented: bool,
    recipe: str | None,
    assignments: tuple[str, ...],
    limit: int | None,
    side: int | None,
    out: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Write a data set as one HTML page: pictures, masks, faults, predictions beside the truth.

    DATA is a folder that 'mrcnn data prepare' wrote. The page holds everything and asks the network for nothing.
    """
    if augmented and predictions is not None:
        raise click.UsageError("--augmented shows training samples, for which there are no --predictions")

    from mrcnn_cli.engine.data_check import find_source, only
    from mrcnn_cli.engine.data_view import view_data, view_samples
    from mrcnn_cli.engine.files import make_folder

    source = only(find_source(data, images, annotations), split)
    out = out or Path(f"{source.name.replace('/', '-')}{'-augmented' if augmented else ''}.html")
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"{out}: is no name for a page; use .html")
    make_folder(out.parent)
    with Counter("reading pictures") as counter:
        if augmented:
            name, config = chosen_recipe(recipe, assignments)
            page = view_samples(source, out, config, name, count=limit or 100, progress=counter.update)
        else:
            page = view_data(
                source,
                out,
                limit=limit or 10_000,
                side=side,
                predictions=predictions,
                score=score,
                workers=workers,
                progress=counter.update,
            )
    if as_json:
        print_json({"page": str(out), "images": page.images, "left_out": page.left_out, "bytes": page.size})
        return
    if page.left_out:
        say(f"shown    {page.images:,} of {page.images + page.left_out:,} pictures, evenly spaced; all: --limit")
    say(f"written  {typed_path(out)}: {page.images:,} pictures, {page.size / 2**20:.1f} MB; open it in a browser")
