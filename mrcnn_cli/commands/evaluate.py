"""mrcnn evaluate: how good a trained model is on annotated images."""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import click

from mrcnn_cli.commands.console import (
    INTERRUPTED,
    Verb,
    device_option,
    json_option,
    metrics_tables,
    print_json,
    say,
    say_error,
    say_warning,
    set_option,
    shown_path,
)
from mrcnn_cli.commands.progress import Counter
from mrcnn_cli.errors import UserError

PICTURES = 12  # as many as the overview of predictions shows


class Evaluate(Verb):
    """--data takes a prepared data set or, where an annotation file follows, a folder of images with it."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        for place, word in enumerate(args[:-2]):
            if word == "--data" and args[place + 2].endswith(".json"):
                args = [*args[:place], "--pair", *args[place + 1 :]]
        return super().parse_args(context, args)


@click.command(
    "evaluate",
    cls=Evaluate,
    examples=[
        "mrcnn evaluate",
        "mrcnn evaluate runs/longer --data photos photos.json --out evaluation --pictures 30",
        "mrcnn evaluate --data prepared --split test",
        "mrcnn evaluate runs/longer --processes 8",
    ],
)
@click.argument("weights", required=False, metavar="[RUN|CHECKPOINT]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DATA | DIR ANNOTATIONS.json",
    show_default="the run's validation images",
    help="A folder that 'mrcnn data prepare' wrote, or images and their COCO annotations.",
)
@click.option("--pair", nargs=2, hidden=True)
@click.option(
    "--split",
    metavar="NAME",
    show_default="val, else test, else train",
    help="The split of a prepared data set.",
)
@set_option("evaluate.max_detections=300")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="nothing is written",
    help="Write metrics.json, results.json (a COCO results list) and pictures into this folder; panoptic.json too.",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=0),
    metavar="NUMBER",
    show_default=f"{PICTURES} with --out",
    help="Draw so many of the images with the most mistakes, the truth beside the prediction.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="1, or as torchrun says",
    help="Share the images among N processes on this machine, one for each GPU.",
)
@device_option
@json_option
def command(
    weights: str | None,
    data: Path | None,
    pair: tuple[str, str] | None,
    split: str | None,
    assignments: tuple[str, ...],
    out: Path | None,
    pictures: int | None,
    processes: int | None,
    device: str,
    as_json: bool,
) -> int | None:
    """Evaluate a trained model by COCO's metrics.

    RUN is a run's folder, of which the best weights are taken; by default the newest run. CHECKPOINT may be a file of
    another system too.
    """
    if split is not None and data is None:
        raise click.UsageError("--split names a split of a prepared data set: give it with --data DATA")
    if data is not None and pair:
        raise click.UsageError("--data is given twice: once with an annotation file, once without")

    if pictures is not None and out is None:
        raise click.UsageError("--pictures are written into a folder: give it with --out DIR")

    wish = Wish(weights, data, pair, split, assignments, out, pictures, device, as_json)
    if processes and "RANK" not in os.environ:  # else this is one of several processes already
        from mrcnn_cli.engine.launcher import launch
        from mrcnn_cli.engine.run import latest_run

        words = wish._replace(weights=weights or str(latest_run())).words()
        words += ["--debug"] * bool(click.get_current_context().find_root().meta.get("debug"))
        return launch(words, processes, say_error)

    from mrcnn_cli.engine.distributed import EndedByOther, joined

    try:
        with joined(device, say_error) as world:
            try:
                _evaluate(world, wish)
            except KeyboardInterrupt:
                if world.is_first:
                    raise
                return INTERRUPTED  # the first one says so
    except EndedByOther:
        return 1
    return None


class Wish(NamedTuple):
    """What was asked for on the command line."""

    weights: str | None
    data: Path | None
    pair: tuple[str, str] | None
    split: str | None
    assignments: tuple[str, ...]
    out: Path | None
    pictures: int | None
    device: str
    as_json: bool

    def words(self) -> list[str]:
        """The command line that asks for it."""
        words = ["evaluate", *filter(None, [self.weights]), "--device", self.device]
        given = {
            "--data": self.pair or self.data,
            "--split": self.split,
            "--out": self.out,
            "--pictures": self.pictures,
        }
        for option, value in given.items():
            if value is not None:
                words += [option, *map(str, value if isinstance(value, tuple) else (value,))]
        words += [word for text in self.assignments for word in ("--set", text)]
        return words + ["--json"] * self.as_json


def _evaluate(world: Any, wish: Wish) -> None:
    """This process's part; the first one says, shows and writes what all have found."""
    from mrcnn_cli.data.dataset_file import evaluation_split, read_dataset_file
    from mrcnn_cli.data.loader import SplitConfig
    from mrcnn_cli.engine.checkpoint import load
    from mrcnn_cli.engine.comparison import write_comparisons
    from mrcnn_cli.engine.distributed import local_device
    from mrcnn_cli.engine.evaluate import evaluate
    from mrcnn_cli.engine.files import make_folder, write_bytes
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.panoptic import PanopticFiles
    from mrcnn_cli.engine.run import choose_device, latest_run, read_split, wanted_keypoints

    weights, data, pair, split, assignments, out, pictures, device, as_json = wish
    prepared = evaluation_split(read_dataset_file(data), split) if data is not None else None
    keep_freed_memory()
    checkpoint = load(weights or latest_run(), choose_device(local_device(world, device)), assignments)
    chosen = prepared or checkpoint.config.data.val
    images, annotations = map(Path, pair) if pair else (chosen.images, chosen.annotations)
    if images is None or annotations is None:
        raise UserError(
            f"{checkpoint.path}: its run had no validation images; give some with --data DIR ANNOTATIONS.json"
        )
    if out is not None and world.is_first:
        make_folder(out)  # before the work, not after it
    config = checkpoint.config
    evaluated = SplitConfig(
        images=images,
        annotations=annotations,
        proposals=config.data.val.proposals,
        semantic=None if pair else chosen.semantic,
    )
    dataset = read_split(
        config, evaluated, checkpoint.classes, wanted_keypoints(config), checkpoint.stuff_classes, name="val"
    )
    if world.is_first:
        for warning in dataset.warnings:
            say_warning(warning)
        shared = f", shared by {world.size} processes" if world.size > 1 else ""
        say(f"weights  {shown_path(checkpoint.path)} ({checkpoint.provenance})")
        say(f"data     {len(dataset):,} images of {shown_path(annotations)}{shared}")
    segments = None
    if out is not None and dataset.maps is not None:
        segments = PanopticFiles(out / "panoptic.json", dataset.categories)
    world.at_work()
    with Counter("evaluating", len(dataset)) if world.is_first else nullcontext() as counter:
        metrics, results = evaluate(
            checkpoint.model,
            checkpoint.config,
            dataset,
            checkpoint.device,
            progress=counter.update if counter is not None else lambda done, total: None,
            segments=segments,
            world=world,
        )
    if not world.is_first:
        return
    assert metrics is not None  # only a stopped evaluation has none
    if out is not None:
        write_bytes(out / "metrics.json", json.dumps(metrics, indent=2).encode())
        written = ["metrics.json"]
        if "proposal_ar1000" not in metrics:  # proposals are no results; 'mrcnn proposals' writes them
            write_bytes(out / "results.json", json.dumps(results).encode())
            written.append("results.json")
            if pictures != 0:
                write_comparisons(out, dataset, config, results, PICTURES if pictures is None else pictures)
                written += ["pictures/", "overview.png"]
        if segments is not None and segments.write():
            written += ["panoptic.json", "panoptic/"]
    if as_json:
        print_json(metrics)
    else:
        metrics_tables(metrics)
    if out is not None:
        say(f"written  {', '.join(f'{shown_path(out)}/{name}' for name in written)}")
