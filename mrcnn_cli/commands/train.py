"""mrcnn train: a model from a recipe and data."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from mrcnn_cli.commands.console import (
    INTERRUPTED,
    GracefulStop,
    Verb,
    device_option,
    duration,
    json_option,
    metrics_tables,
    print_json,
    say,
    say_error,
    say_warning,
    set_option,
    shown_path,
    table,
    typed_path,
)
from mrcnn_cli.commands.progress import TrainingScreen
from mrcnn_cli.errors import UserError


@click.command(
    "train",
    cls=Verb,
    examples=[
        "mrcnn train",
        "mrcnn train --train photos photos.json --val more more.json",
        "mrcnn train --data prepared",
        "mrcnn train nuclei --set train.steps=600 --out runs/longer",
        "mrcnn train --resume runs/longer",
        "mrcnn train --repeats 3 --out runs/three",
        "mrcnn train mask_rcnn_r50_fpn_1x --processes 8 --restarts 2",
    ],
)
@click.argument("config", required=False)
@set_option("train.steps=600")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DATA",
    show_default="none",
    help="A folder that 'mrcnn data prepare' wrote: its splits and classes.",
)
@click.option(
    "--train",
    "train_split",
    nargs=2,
    metavar="DIR ANNOTATIONS",
    show_default="the recipe's, else the sample of nuclei",
    help="Images to learn from and their COCO annotations.",
)
@click.option(
    "--val",
    "val_split",
    nargs=2,
    metavar="DIR ANNOTATIONS",
    show_default="the recipe's, else the sample of nuclei",
    help="Images to evaluate on and their COCO annotations.",
)
@click.option(
    "--weights",
    metavar="RUN|FILE",
    show_default="the recipe's",
    help="Start from these: a run, a checkpoint, a file of another system, or an ImageNet backbone.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="runs/<date>-<recipe>",
    help="The run's folder.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    show_default="a new run",
    help="Go on with the run in this folder.",
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    metavar="NAME",
    show_default="the recipe's",
    help="Write the numbers to tensorboard, wandb or mlflow too; may be repeated.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=2),
    metavar="N",
    show_default="one run",
    help="Train with N seeds, from train.seed on, and report mean and spread.",
)
@click.option("--find-lr", is_flag=True, help="Find a learning rate (some hundred steps at most), and train nothing.")
@click.option("--find-batch", is_flag=True, help="Find the largest batch that fits into memory, and train nothing.")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="1, or as torchrun says",
    help="Share each step's batch among N processes on this machine, one for each GPU.",
)
@click.option(
    "--restarts",
    type=click.IntRange(min=0),
    metavar="N",
    default=0,
    help="Of several processes: start all again, from what was saved last, when one fails; at most N times.",
)
@device_option
@json_option
def command(
    config: str | None,
    assignments: tuple[str, ...],
    data: Path | None,
    train_split: tuple[str, str] | None,
    val_split: tuple[str, str] | None,
    weights: str | None,
    out: Path | None,
    resume: Path | None,
    logs: tuple[str, ...],
    repeats: int | None,
    find_lr: bool,
    find_batch: bool,
    processes: int | None,
    restarts: int,
    device: str,
    as_json: bool,
) -> int | None:
    """Train a model, evaluate it and keep its weights.

    CONFIG is a shipped recipe's name (see 'mrcnn config list') or a TOML file. Without it, the recipe of --weights is
    taken, or one that fits the data and what is installed, and without data, a small sample of nuclei is learnt.
    """
    if resume is not None and (config or data or train_split or val_split or weights or out):
        raise click.UsageError(
            "--resume takes recipe, data, weights and folder from the run: leave CONFIG, --data, --train, --val, "
            "--weights and --out out"
        )
    if find_lr + find_batch + (repeats is not None or resume is not None) > 1:
        raise click.UsageError("--find-lr and --find-batch stand alone: leave the other, --resume and --repeats out")
    if data is not None and (train_split or val_split):
        raise click.UsageError("--data names all splits: leave --train and --val out")
    overrides = [*_prepared_keys(data), *_data_keys("train", train_split), *_data_keys("val", val_split), *assignments]
    if logs:
        overrides.append(f"train.log={_toml(logs)}")
    if weights is not None:
        overrides.append(f"train.weights={json.dumps(weights, ensure_ascii=False)}")
    started = "RANK" in os.environ  # as one of several processes
    if restarts and not processes and not started:
        raise click.UsageError("--restarts starts processes again: give --processes N too")
    if (processes or started) and (repeats or find_lr or find_batch):
        raise click.UsageError("--repeats, --find-lr and --find-batch are for one process: leave --processes out")
    wish = Wish(config, overrides, weights, out, resume, repeats, device)
    if processes and not started:
        return _launch(wish, processes, restarts, as_json)

    from mrcnn_cli.config import loads, validate
    from mrcnn_cli.engine import start
    from mrcnn_cli.engine.distributed import EndedByOther, joined
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.run import RunConfig, prepare

    keep_freed_memory()
    try:
        with joined(device, say_error) as world:
            plan = world.tell(_plan(wish, say, world.restartable) if world.is_first else None)
            settings = validate(RunConfig, loads(plan["config"]), plan["recipe"])
            run = prepare(settings, Path(plan["folder"]), device, world)
            if not world.is_first:
                return _follow(run, plan["resume"])
            for warning in (*plan["warnings"], *run.warnings, *(start.remarks(run) if not plan["resume"] else ())):
                say_warning(warning)
            if find_lr or find_batch:
                from mrcnn_cli.commands.search import find_batch_size, find_learning_rate

                (find_learning_rate if find_lr else find_batch_size)(run, as_json)
                return None
            _say_header(run, plan["recipe"])
            if repeats is not None:
                return _repeat(Path(plan["group"]), run, repeats, as_json)
            status, report = _train(run, resume=plan["resume"])
            if status is None:
                _show(run, report, as_json)
            return status
    except EndedByOther:
        return 1


class Wish(NamedTuple):
    """What was asked for on the command line."""

    config: str | None
    overrides: list[str]
    weights: str | None
    out: Path | None
    resume: Path | None
    repeats: int | None
    device: str


def _plan(wish: Wish, tell: Callable[[str], None], restartable: bool = False) -> dict[str, Any]:
    """What is trained and where: recipe, config (as TOML), folder, group (of repeats), resume, and warnings."""
    from mrcnn_cli.config import dumps
    from mrcnn_cli.engine import resume as going_on
    from mrcnn_cli.engine import start
    from mrcnn_cli.engine.optimizer import scaling_hint
    from mrcnn_cli.engine.run import choose_device, default_recipe, new_folder, read_config

    config, overrides, weights, out, resume, repeats, device = wish
    warnings: Sequence[str] = ()
    if restartable and resume is None:  # the same command line is run again, and has to go on
        if out is None:
            raise UserError("processes that are started again go on in the same folder: name it with --out DIR")
        if going_on.state_files(out):
            resume, overrides = out, []
            tell(f"{shown_path(out)} holds this run already: going on with it")
    group = resume
    if resume is not None and repeats is not None:
        from mrcnn_cli.engine.repeats import first_of

        resume = first_of(resume)
    saved = resume is not None and going_on.can_resume(resume)
    if resume is not None:
        folder = _existing_run(resume)
        recipe = str(folder / "config.toml")
        state = going_on.read_state(folder) if saved else None
        settings, changes = going_on.changed_recipe(folder, state, overrides)
        for change in changes:
            tell(f"changed: {change}")
        if state is None:
            tell(f"{folder}: nothing was saved yet; starting from step 0")
        else:
            warnings = going_on.remarks(folder, state, choose_device(device))
    else:
        own_data = any(text.startswith("data.train.") for text in overrides)
        recipe, reason = (config, "") if config else (weights, "its own") if weights else default_recipe(own_data)
        folder = group = new_folder(recipe, out)
        if not config:
            tell(f"no recipe named: taking {recipe}, {reason}")
        of_weights = weights is not None and not config
        settings = start.recipe_of(recipe, overrides) if of_weights else read_config(recipe, overrides)
        hint = None if of_weights else scaling_hint(read_config(recipe).train, settings.train)
        if hint is not None:
            tell(hint)
    return {
        "recipe": recipe,
        "config": dumps(settings),
        "folder": str(folder),
        "group": str(group),
        "resume": saved,
        "warnings": list(warnings),
    }


def _launch(wish: Wish, processes: int, restarts: int, as_json: bool) -> int:
    """Runs the same command in several processes; the exit status."""
    from mrcnn_cli.engine.launcher import launch
    from mrcnn_cli.engine.resume import state_files

    plan = _plan(wish, lambda line: None)  # mistakes end it here, and the folder is the same for all
    folder = Path(plan["folder"])
    words = ["train", "--device", wish.device]
    words += ["--resume", str(folder)] if wish.resume is not None else ["--out", str(folder)]
    words += [wish.config] if wish.config is not None else []
    words += ["--weights", wish.weights] if wish.weights is not None else []
    words += [word for text in wish.overrides if not text.startswith("train.weights=") for word in ("--set", text)]
    words += ["--json"] * as_json + ["--debug"] * bool(click.get_current_context().find_root().meta.get("debug"))
    status = launch(words, processes, say_error, restarts, folder)
    if status == 1 and state_files(folder):
        say(f"go on with: mrcnn train --resume {typed_path(folder)} --processes {processes}")
    return status


def _follow(run: Any, resume: bool) -> int | None:
    """The part of each process but the first: it works and is silent; the exit status."""
    from mrcnn_cli.engine.train import Interrupted

    stop = GracefulStop("", (signal.SIGTERM,))
    try:
        with stop:
            for _ in _steps(run, resume, stop):
                pass
    except Interrupted:
        return None  # the first one says so; a launcher takes any other status for a failure and ends it at once
    except KeyboardInterrupt:
        return INTERRUPTED
    return None


def _steps(run: Any, resume: bool, stop: GracefulStop) -> Iterator[Any]:
    import torch

    from mrcnn_cli.engine.train import train

    done = 0
    try:
        for step in train(run, resume=resume, should_stop=stop):
            done = step.step
            yield step
    except torch.OutOfMemoryError:
        raise UserError(
            f"--device {run.device}: out of memory at step {done + 1}; take a smaller train.batch_size "
            f"(now {run.config.train.batch_size}), do it in parts (train.accumulate) or take smaller images"
        ) from None


def _repeat(group: Path, run: Any, repeats: int, as_json: bool) -> int | None:
    """Trains with one seed after the other, passing over what is done, and sums up; the exit status."""
    from mrcnn_cli.engine.repeats import repeats_of, summary, write_summary
    from mrcnn_cli.engine.resume import state_files

    runs = repeats_of(run, group, repeats)
    for number, run in enumerate(runs, 1):
        say(f"repeat   {number} of {len(runs)}: {shown_path(run.folder)}")
        status, _ = _train(run, resume=bool(state_files(run.folder)))
        if status is not None:
            say(f"or go on with all: mrcnn train --resume {typed_path(group)} --repeats {len(runs)}")
            return status
    spreads = summary([run.folder for run in runs])
    write_summary(group, spreads, [run.config.train.seed for run in runs])
    if as_json:
        print_json({"runs": [str(run.folder) for run in runs], "metrics": spreads})
    else:
        columns = ["", "mean", "deviation", "lowest", "highest"]
        rows = [[name, *spread.values()] for name, spread in spreads.items()]
        table(f"The last evaluations of {len(runs)} runs", columns, rows)
    say(f"spread   {shown_path(group)}/repeats.json")
    return None


def _train(run: Any, resume: bool) -> tuple[int | None, dict[str, Any]]:
    """Trains and shows; the exit status where it was stopped, and what there is to report."""
    from mrcnn_cli.engine import stopping
    from mrcnn_cli.engine.logs import logged
    from mrcnn_cli.engine.resume import state_files
    from mrcnn_cli.engine.train import Interrupted, evaluation_is_due, evaluations

    config = run.config.train
    shared = f" --processes {run.world.size}" if run.world.size > 1 else ""
    resume_line = f"go on with: mrcnn train --resume {typed_path(run.folder)}{shared}"
    began = time.monotonic()
    metrics: dict[str, Any] | None = None
    done, memory, skipped = 0, 0.0, 0

    message = "stopping after this step; Ctrl-C again stops at once and loses what is not saved"
    stop = GracefulStop(message, (signal.SIGTERM,) if run.world.size > 1 else ())
    try:
        with stop, TrainingScreen(config.steps, lambda step: evaluation_is_due(run, step), config.batch_size) as screen:
            for step in logged(run, _steps(run, resume, stop)):
                screen.update(step)
                if step.kind == "skipped":
                    skipped = step.values["count"]
                    continue
                done = step.step
                if step.kind == "evaluation":
                    metrics = step.values
                elif step.kind == "train":
                    memory = step.values["memory_mb"]
    except Interrupted as interrupted:
        say(f"stopped after step {interrupted.step} of {config.steps}, everything is saved; {resume_line}")
        return INTERRUPTED, {}
    except KeyboardInterrupt:
        saved = bool(state_files(run.folder))
        say_error(f"interrupted at step {done}; {resume_line}" if saved else "interrupted, before anything was saved")
        return INTERRUPTED, {}
    seconds = time.monotonic() - began
    if stopping.is_over(config, evaluations(run.folder)):
        say(f"enough   {stopping.verdict(config, evaluations(run.folder))}")
    if done:
        say(f"took     {duration(seconds)}, {memory:,.0f} MB at most")
    elif not stopping.is_over(config, evaluations(run.folder)):
        say(f"nothing left to do: all {config.steps} steps are done; more: --set train.steps={2 * config.steps}")
    if skipped:
        count = "1 picture was" if skipped == 1 else f"{skipped} pictures were"
        say_warning(f"{count} skipped, unreadable (data.skip_broken); see metrics.jsonl")
    return None, {
        "run": str(run.folder),
        "step": done,
        "seconds": seconds,
        "memory_mb": memory,
        "metrics": metrics,
    }


def _show(run: Any, report: dict[str, Any], as_json: bool) -> None:
    metrics = report["metrics"]
    if as_json:
        print_json(report)
    elif metrics is not None:
        metrics_tables(metrics)
    elif run.val is None:
        say("not evaluated: there are no validation images; give them with --val DIR ANNOTATIONS")
    _say_footer(run)


def _data_keys(name: str, split: tuple[str, str] | None) -> list[str]:
    if split is None:
        return []
    keys = (f"data.{name}.images", f"data.{name}.annotations")
    return [f"{key}={_toml(path)}" for key, path in zip(keys, split, strict=True)]


def _toml(value: Any) -> str:
    """Quoted, so that a path is a string whatever it looks like; JSON's quoting is TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _prepared_keys(data: Path | None) -> list[str]:
    """The classes and splits of a prepared data set, as --set takes them."""
    if data is None:
        return []
    from mrcnn_cli.data.dataset_file import read_dataset_file

    prepared = read_dataset_file(data)
    if "train" not in prepared.splits:
        raise UserError(f"{data}: has no split 'train', only {', '.join(prepared.splits)}; prepare it with one")
    keys = [f"data.classes={_toml(prepared.classes)}"]
    if prepared.stuff is not None:
        keys.append(f"data.stuff={_toml(prepared.stuff)}")
    for name in ("train", "val"):
        if name in prepared.splits:
            paths = prepared.splits[name].model_dump(mode="json", exclude_none=True)
            keys += [f"data.{name}.{key}={_toml(path)}" for key, path in paths.items()]
    return keys


def _existing_run(folder: Path) -> Path:
    """What runs/latest points to rather than the link."""
    return folder.parent / os.readlink(folder) if folder.is_symlink() else folder


def _say_header(run: Any, recipe: str) -> None:
    config = run.config
    objects = sum(len(boxes) for _, boxes in run.train.boxes_by_image())
    classes = ", ".join(run.train.classes[:5]) + (", ..." if len(run.train.classes) > 5 else "")
    validation = f"{len(run.val):,} to evaluate on" if run.val is not None else "none to evaluate on"
    say(
        f"recipe   {recipe}: {config.model.name}, {config.model.backbone.name}, {config.train.steps} steps of "
        f"{config.train.batch_size} images"
    )
    say(f"data     {len(run.train):,} images with {objects:,} objects, {validation}")
    say(f"classes  {len(run.train.classes)}: {classes}")
    if config.train.learning_rate_images is not None:
        say(
            f"rate     {config.train.full_rate:.4g}: {config.train.learning_rate:g} for "
            f"{config.train.learning_rate_images} images, scaled to {config.train.batch_size}"
        )
    if config.train.layers != "all":
        from mrcnn_cli.engine.train import learning_parameters

        learning, total = learning_parameters(run)
        say(f"layers   {config.train.layers}: {learning:,} of {total:,} parameters learn")
    shared = f", {run.world.size} processes" if run.world.size > 1 else ""
    say(f"device   {run.device}{shared}")
    if config.train.compile:
        say("compile  the first steps take longer: networks are compiled for each size of images and number of regions")
    say(f"folder   {shown_path(run.folder)}")


def _say_footer(run: Any) -> None:
    folder = shown_path(run.folder)
    say(f"weights  {folder}/best.safetensors, {folder}/last.safetensors")
    say(f"losses   {folder}/losses.png")
    images = (run.config.data.val if run.val is not None else run.config.data.train).images
    say(f"next     mrcnn predict {typed_path(images)} --weights {typed_path(run.folder)}")
