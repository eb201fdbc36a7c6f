"""Annotations of any format read, divided into splits, and written as the data set that training takes."""

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mrcnn_cli import config as recipes
from mrcnn_cli.data.coco import Dataset, Repairs
from mrcnn_cli.data.dataset_file import FILE_NAME, DatasetFile, SourceConfig, dataset_toml, read_dataset_file
from mrcnn_cli.data.formats import FORMATS, WRITERS, guess
from mrcnn_cli.data.formats.coco import content
from mrcnn_cli.data.formats.collection import Collection, Instance, Picture, check, picture_names
from mrcnn_cli.data.formats.source import Reading, Source
from mrcnn_cli.data.loader import SplitConfig
from mrcnn_cli.data.splits import stratified
from mrcnn_cli.engine.files import make_folder, write_bytes
from mrcnn_cli.errors import UserError

VAL_SHARE = 0.1


@dataclass
class Collected:
    """What was read of a source.

    Attributes:
        format: its name.
        reason: what it was recognized by; empty where the person named it.
        collection: the pictures that are there, with their objects.
        faults: files and entries that could not be read, a line each.
        notes: what was left out or changed, counted.
    """

    format: str
    reason: str
    collection: Collection
    faults: list[str]
    notes: list[str]


@dataclass
class Written:
    """What was written.

    Attributes:
        folder: where.
        splits: split -> images, and objects by class.
        notes: of the writer: what the format cannot hold; for a prepared data set, how splits were made.
        warnings: of the data set as training will read it.
    """

    folder: Path
    splits: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def collect(
    path: Path,
    *,
    format: str | None = None,
    images: Path | None = None,
    classes: Sequence[str] = (),
    options: Iterable[str] = (),
    out: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Collected:
    """The pictures and objects of a source.

    Args:
        path: an annotation file or a folder.
        format: a key of `FORMATS`; None: guessed.
        images: the folder of images, where they are elsewhere.
        classes: the classes to take, in label order; of a format that has no names, their names.
        options: "key=value" of the format.
        out: where results will be written, which is no part of the source.
        progress: called with the number of pictures read so far.

    Raises:
        UserError: the format cannot be guessed, is unknown, or nothing can be read.
    """
    source = Source(path, images, skip=out)
    reason = ""
    if format is None:
        format, reason = guess(source)
    if format not in FORMATS:
        raise UserError(f"--format {format}: no such format; known formats: {', '.join(FORMATS)}")
    form = FORMATS[format]
    reading = Reading(
        source, recipes.validate(form.options, recipes.override({}, options), f"format {format}"), classes
    )
    pictures = []
    for picture in form.read(reading):
        if picture.path not in reading.missing:
            picture.instances = [one for one in picture.instances if _is_sound(one, picture, reading)]
            pictures.append(picture)
            progress(len(pictures))
    if not pictures:
        first = f": {reading.faults[0]}" if reading.faults else ""
        more = f" (and {len(reading.faults) - 1} more faults)" if len(reading.faults) > 1 else ""
        raise UserError(f"{path}: no picture could be read as {format}{first}{more}")
    collection = _collection(reading, pictures)
    return Collected(format, reason, collection, reading.faults, reading.notes.lines())


def _is_sound(instance: Instance, picture: Picture, reading: Reading) -> bool:
    number = "" if instance.id is None else f" {instance.id}"
    try:
        check(instance, picture)
    except (ValueError, TypeError, OverflowError) as error:
        reading.faults.append(f"{picture.path}: object{number} of class {instance.label}: {error}")
        return False
    return True


def _collection(reading: Reading, pictures: list[Picture]) -> Collection:
    used = {instance.label for picture in pictures for instance in picture.instances} - {None}
    names = list(dict.fromkeys([*reading.classes, *sorted(str(name) for name in used if name not in reading.classes)]))
    if reading.given:
        unknown = [name for name in reading.given if name not in names]
        if unknown and len(unknown) == len(reading.given):
            raise UserError(f"--classes: none of {', '.join(unknown)} is in the source, which has {', '.join(names)}")
        for name in unknown:
            reading.notes.note(f"class without objects ('{name}')", "kept", "--classes")
        for picture in pictures:
            kept = [one for one in picture.instances if one.label is None or one.label in reading.given]
            for instance in picture.instances:
                if instance.label is not None and instance.label not in reading.given:
                    what = f"object of class '{instance.label}'"
                    reading.notes.note(what, "left out: not among --classes", str(picture.path))
            picture.instances = kept
        names = reading.given
    if not names:
        raise UserError(f"{reading.source.path}: has no class and no object; there is nothing to learn")
    return Collection(names, pictures, reading.categories)


def prepare(
    collected: Collected,
    source: Path,
    out: Path,
    *,
    val: float | None = None,
    test: float | None = None,
    group: str | None = None,
    seed: int = 0,
    resplit: bool = False,
    copy: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Written:
    """Write `out`: a COCO file for each split and dataset.toml.

    Images stay where they are; those inside annotation files, or all with `copy`, are written into `out`.

    Args:
        collected: from `collect`.
        source: what it was collected from.
        out: the folder.
        val, test: parts of the images, 0..1; None: the source's split, else .1 and 0.
        group: "folder", or a regular expression whose first group (or whole) in an image's path is its key; images
            with one key stay together.
        seed: of the draw.
        resplit: draw new splits though the source has its own.
        copy: copy the images.
        options: how the source was read, for the record.

    Raises:
        UserError: `out` is the source or holds something else; it cannot be written.
    """
    check_target(out, source, FILE_NAME)
    notes = divide(collected.collection, val=val, test=test, group=group, seed=seed, resplit=resplit)
    collection = collected.collection
    make_folder(out)
    splits: dict[str, SplitConfig] = {}
    counts: dict[str, dict[str, Any]] = {}
    first_id = 1
    for name, pictures in collection.splits.items():
        outside = [picture for picture in pictures if picture.embedded is None]
        if copy or not outside:
            folder, names = out / name, picture_names(pictures)
            _place(pictures, names, folder, copy=True)
        else:
            folder = Path(os.path.commonpath([picture.path.resolve().parent for picture in outside]))
            aside = dict(zip(map(id, pictures), picture_names(pictures), strict=True))
            inside = [picture for picture in pictures if picture.embedded is not None]
            _place(inside, [aside[id(picture)] for picture in inside], out / name, copy=True)
            names = [
                str(picture.path.resolve().relative_to(folder))
                if picture.embedded is None
                else str((out / name / aside[id(picture)]).resolve())
                for picture in pictures
            ]
        written = content(collection, pictures, names, first_id)
        first_id += max(len(written["images"]), len(written["annotations"]))
        write_bytes(out / f"{name}.json", json.dumps(written).encode())
        relative = Path(name) if folder == out / name else folder
        splits[name] = SplitConfig(images=relative, annotations=Path(f"{name}.json"))
        counts[name] = summary(pictures)
    record = SourceConfig(format=collected.format, path=str(source.resolve()), options=dict(options or {}))
    described = DatasetFile(name=source.resolve().stem, classes=tuple(collection.classes), splits=splits, source=record)
    stale = _annotation_files(out) - {f"{name}.json" for name in splits}
    write_bytes(out / FILE_NAME, dataset_toml(described).encode())
    for left in stale:  # of an earlier preparation with other splits
        (out / left).unlink(missing_ok=True)
    warnings = []
    for name, split in splits.items():  # as training will read it
        assert split.images is not None
        assert split.annotations is not None
        read = Dataset.read(out / split.images, out / split.annotations, classes=collection.classes)
        warnings += [f"{name}: {line}" for line in read.warnings]
    return Written(out, counts, notes, warnings)


def _annotation_files(out: Path) -> set[str]:
    """The names of the COCO files in the folder that an earlier preparation wrote."""
    if not (out / FILE_NAME).is_file():
        return set()
    paths = [split.annotations for split in read_dataset_file(out).splits.values()]
    return {path.name for path in paths if path is not None and path.parent == out.resolve()}


def divide(
    collection: Collection,
    *,
    val: float | None,
    test: float | None,
    group: str | None,
    seed: int,
    resplit: bool,
) -> list[str]:
    """Gives each picture its split; what was done, in words.

    A source that has splits keeps them; only validation and test images that it lacks are taken from its training ones.
    """
    own = {picture.split for picture in collection.pictures} - {None} if not resplit else set()
    for picture in collection.pictures:
        picture.split = (picture.split or "train") if own else "train"
    shares = {
        "train": 1.0,  # first: of equals it is taken
        "val": 0.0 if "val" in own else VAL_SHARE if val is None else val,
        "test": 0.0 if "test" in own else 0.0 if test is None else test,
    }
    for name, share in (("val", val), ("test", test)):
        if share and name in own:
            raise UserError(f"--{name} {share}: the source has a split '{name}' already; leave it out or add --resplit")
    candidates = [picture for picture in collection.pictures if picture.split == "train"]
    shares["train"] -= shares["val"] + shares["test"]
    if shares["train"] <= 0:
        raise UserError(f"--val and --test: {1 - shares['train']:g} of the images leave none to learn from")
    notes = [f"splits   the source's own: {', '.join(sorted(map(str, own)))}"] if own else []
    drawn = [name for name in ("val", "test") if shares[name] > 0]
    if not drawn or len(candidates) < 2:
        return notes
    keys = [_key(picture, group) for picture in candidates]
    classes = [{one.label for one in picture.instances if one.label is not None} for picture in candidates]
    for picture, split in zip(candidates, stratified(classes, keys, shares, seed), strict=True):
        picture.split = split
    told = " and ".join(f"{shares[name]:g} of the images to {name}" for name in drawn)
    held = f", {len(set(keys)):,} groups held together" if group else ""
    return [*notes, f"splits   {told}, each class in the same shares{held}, seed {seed}"]


def _key(picture: Picture, group: str | None) -> str:
    path = str(picture.path)
    if group is None:
        return path
    if group == "folder":
        return str(picture.path.parent)
    try:
        match = re.search(group, path)
    except re.error as error:
        raise UserError(f"--group {group}: not a regular expression ({error})") from None
    if match is None:
        return path
    return match[1] if match.re.groups and match[1] is not None else match[0]


def convert(collection: Collection, source: Path, target: str, out: Path, *, copy: bool = False) -> Written:
    """Write `out` in the format `target`; images are linked, or copied with `copy`.

    Raises:
        UserError: `target` is not written; `out` is the source or not empty; it cannot be written.
    """
    check_convert(target, out, source)
    write = FORMATS[target].write
    assert write is not None
    losses = Repairs()
    make_folder(out)
    for name, data in write(collection, losses):
        path = out / name
        make_folder(path.parent)
        if isinstance(data, Picture):
            _place([data], [path.name], path.parent, copy)
        else:
            write_bytes(path, data, durable=False)
    counts = {name: summary(pictures) for name, pictures in collection.splits.items()}
    return Written(out, counts, losses.lines())


def check_target(out: Path, source: Path, own: str | None) -> None:
    """Nothing, where `out` can be written without touching what is there.

    Raises:
        UserError: it is the source, holds it, or has files and not the one called `own` that says they are ours.
    """
    there, here = out.resolve(), source.resolve()
    if there == here or there in here.parents:
        raise UserError(
            f"{out}: is the source or holds it, which is never written over; choose another folder with --out"
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; choose a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (own and (out / own).is_file()):
        raise UserError(f"{out}: is not empty; choose a new folder with --out")


def check_convert(target: str, out: Path, source: Path) -> None:
    """Nothing, where `target` is written and `out` is free.

    Raises:
        UserError: else.
    """
    if target not in WRITERS:
        raise UserError(f"--to {target}: not a format that is written; take one of {', '.join(WRITERS)}")
    check_target(out, source, None)


def summary(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Numbers of images and of objects, by class."""
    labels = Counter(one.label for picture in pictures for one in picture.instances if not one.crowd)
    crowds = sum(one.crowd for picture in pictures for one in picture.instances)
    objects = {str(label): count for label, count in labels.items()}
    return {"images": len(pictures), "objects": sum(labels.values()), "ignored": crowds, "classes": objects}


def _place(pictures: Sequence[Picture], names: Sequence[str], folder: Path, copy: bool) -> None:
    """Images in a folder: written, copied or linked."""
    if pictures:
        make_folder(folder)
    for picture, name in zip(pictures, names, strict=True):
        path = folder / name
        if picture.embedded is not None:
            write_bytes(path, picture.embedded(), durable=False)
            continue
        aside = path.with_name(f".{name}.{os.getpid()}.tmp")
        try:
            if copy:
                shutil.copyfile(picture.path, aside)
            else:
                aside.symlink_to(picture.path.resolve())
            os.replace(aside, path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            remedy = "make room" if copy else "if links cannot be made there, add --copy"
            raise UserError(f"{path}: cannot be written: {error.strerror}; {remedy}") from None
