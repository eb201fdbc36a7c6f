"""mrcnn data stats: what a data set is made of."""

from pathlib import Path
from typing import Any

import click

from mrcnn_cli.commands.console import Number, Verb, json_option, print_json, say, table, typed_path
from mrcnn_cli.commands.data.source import chosen_recipe, recipe_options, source_options

# Of mean IoU: for less, anchors are not worth changing.
GAIN = 0.01


@click.command(
    "stats",
    cls=Verb,
    examples=["mrcnn data stats data", "mrcnn data stats data --recipe mask_rcnn_r50_fpn_1x --plot data.png"],
)
@source_options
@recipe_options("its resizing and its anchors are held against the objects")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="no picture",
    help="Draw classes, sizes, shapes and objects per image into this picture (.png).",
)
@json_option
def command(
    data: Path | None,
    images: tuple[Path, ...],
    annotations: tuple[Path, ...],
    recipe: str | None,
    assignments: tuple[str, ...],
    plot: Path | None,
    as_json: bool,
) -> None:
    """Count objects and measure their sizes and shapes, and how well a recipe's anchors fit them.

    DATA is a folder that 'mrcnn data prepare' wrote.
    """
    from mrcnn_cli.engine.data_check import find_source
    from mrcnn_cli.engine.data_stats import distributions, read_tables, statistics
    from mrcnn_cli.engine.files import make_folder

    source = find_source(data, images, annotations)
    name, config = chosen_recipe(recipe, assignments)
    if plot is not None:
        make_folder(plot.parent)
    tables = read_tables(source)
    found = {"name": source.name, "recipe": name} | statistics(tables, config)
    if plot is not None:
        from mrcnn_cli.views.histograms import histograms

        histograms(source.name, distributions(tables), plot)
    if as_json:
        print_json(found)
    else:
        _show(found)
    if plot is not None:
        say(f"written  {typed_path(plot)}")


def _show(found: dict[str, Any]) -> None:
    recipe = found["recipe"]
    splits = found["splits"].items()
    columns = ["split", "images", "empty", "objects", "crowds", "with mask", "classes"]
    keys = ("images", "empty_images", "objects", "crowds", "masks")
    table(found["name"], columns, [[n, *(s[key] for key in keys), len(found["classes"])] for n, s in splits])
    quantities = {
        "objects per image": "objects_per_image",
        "size, px": "size",
        "height / width": "aspect",
        "image height": "image_height",
        "image width": "image_width",
    }
    quantiles = ["min", "p5", "median", "p95", "max"]
    rows = [[n, title, *(_short(s[key][q]) for q in quantiles)] for n, s in splits for title, key in quantities.items()]
    table("Spread", ["split", "", *quantiles], rows)
    if len(found["classes"]) > 1:
        rows = [
            [name, values["objects"], values["images"], *(_short(values["size"][q]) for q in ("p5", "median", "p95"))]
            for name, values in found["classes"].items()
        ]
        table("Classes", ["class", "objects", "images", "size p5", "median", "p95"], rows)
    seen = found["input"]
    if seen["small"] is None:
        return
    shares = ", ".join(f"{seen[name]:.0%} {name}" for name in ("small", "medium", "large"))
    say(f"as {recipe} sees them: {shares} (borders 32 and 96 px), median size {seen['size']['median']:.0f} px")
    if found["anchors"] is not None:
        _show_anchors(found["anchors"], recipe)


def _show_anchors(anchors: dict[str, Any], recipe: str) -> None:
    present, suggested = anchors["recipe"], anchors["suggested"]
    positive = anchors["positive_iou"]
    columns = ["anchors", "recall at 0.5", f"at {positive:g}", "mean IoU", f"below {anchors['negative_iou']:g}"]
    rows = [
        [title, *(Number(f"{fit[key]:.3f}") for key in ("recall_50", "recall", "mean_iou", "unmatched"))]
        for title, fit in ((recipe, present), ("suggested, by k-means", suggested))
    ]
    table("Best anchor of each object", columns, rows)
    if suggested["mean_iou"] < present["mean_iou"] + GAIN:
        say(f"the anchors of {recipe} fit these objects as well as clusters of them would")
        return
    sizes = "[" + ", ".join("[" + ", ".join(f"{size:g}" for size in level) + "]" for level in suggested["sizes"]) + "]"
    ratios = "[" + ", ".join(f"{ratio:g}" for ratio in suggested["ratios"]) + "]"
    say(f"to take the suggestion: --set 'model.anchors.sizes={sizes}' --set 'model.anchors.ratios={ratios}'")


def _short(value: float | None) -> Number | None:
    return None if value is None else Number(f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
