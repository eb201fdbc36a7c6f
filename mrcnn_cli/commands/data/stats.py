"""mrcnn data stats: what a data set is made of."""

from pathlib import Path
from typing import Any

import click

from mrcnn_cli.commands.console import Number, Verb, json_option, print_json, say, say_warning, table, typed_path
from mrcnn_cli.commands.data.source import chosen_recipe, recipe_options, source_options, workers_option
from mrcnn_cli.commands.progress import Counter

# Of mean IoU: for less, anchors are not worth changing.
GAIN = 0.01


@click.command(
    "stats",
    cls=Verb,
    examples=["mrcnn data stats data", "mrcnn data stats data --recipe mask_rcnn_r50_fpn_1x --plot data.png"],
)
@source_options
@click.option("--pixels/--no-pixels", default=True, show_default=True, help="Look into the image files too.")
@recipe_options("its resizing and its anchors are held against the objects, its mean and deviation against the pixels")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    metavar="FILE",
    show_default="no picture",
    help="Draw classes, sizes, shapes and objects per image into this picture (.png).",
)
@workers_option("read pictures")
@json_option
def command(
    data: Path | None,
    images: tuple[Path, ...],
    annotations: tuple[Path, ...],
    pixels: bool,
    recipe: str | None,
    assignments: tuple[str, ...],
    plot: Path | None,
    workers: int,
    as_json: bool,
) -> None:
    """Count objects, measure their sizes and shapes and the pictures' colours, and how well a recipe fits them.

    DATA is a folder that 'mrcnn data prepare' wrote. The mean and deviation of channels are those of up to 500 pictures
    of the first split.
    """
    from mrcnn_cli.engine import data_stats
    from mrcnn_cli.engine.data_check import find_source
    from mrcnn_cli.engine.files import make_folder

    source = find_source(data, images, annotations)
    name, config = chosen_recipe(recipe, assignments)
    if plot is not None:
        make_folder(plot.parent)
    tables = data_stats.read_tables(source)
    found = {"name": source.name, "recipe": name} | data_stats.statistics(tables, config)
    with Counter("looking at pictures") as counter:
        found["pixels"] = data_stats.pixels(tables[0], config, workers, counter.update) if pixels else None
    if plot is not None:
        from mrcnn_cli.views.histograms import histograms

        histograms(source.name, data_stats.distributions(tables), plot)
    if as_json:
        print_json(found)
    else:
        _show(found)
        _show_pixels(found["pixels"], name, config.model.pixels)
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


def _show_pixels(pixels: dict[str, Any] | None, recipe: str, given: Any) -> None:
    if pixels is None:
        return
    mean, deviation = pixels["mean"], pixels["deviation"]
    names = [str(place) for place in range(1, len(mean) + 1)]
    if len(mean) == 3:
        names = ["red", "green", "blue"] if pixels["channels"] == "rgb" else ["blue", "green", "red"]
    rows: list[list[Any]] = [[name, *map(_short, values)] for name, *values in zip(names, mean, deviation, strict=True)]
    columns = ["channel", "mean", "deviation"]
    if given.mean != "auto" and len(given.mean) == len(mean):
        columns += [f"mean in {recipe}", "deviation"]
        rows = [[*row, *map(_short, values)] for row, *values in zip(rows, given.mean, given.deviation, strict=True)]
    table(f"Pixels of {pixels['pictures']} pictures of {pixels['split']}", columns, rows)
    lists = {key: ", ".join(f"{value:g}" for value in pixels[key]) for key in ("mean", "deviation")}
    keys = " ".join(f"--set 'model.pixels.{key}=[{values}]'" for key, values in lists.items())
    say(f"with data.normalize = {pixels['normalize']}; to train with these instead: {keys}")
    if pixels["left_out"]:
        say_warning(
            f"{pixels['left_out']:,} of {pixels['left_out'] + pixels['pictures']:,} pictures cannot be read or have "
            "other channels and are left out here; 'mrcnn data check' names them"
        )
    for warning in pixels["warnings"]:
        say_warning(warning)


def _short(value: float | None) -> Number | None:
    return None if value is None else Number(f"{value:,.0f}" if value >= 100 else f"{value:.3g}")
