"""The search for faults over all splits of a data set, with a recipe's anchors; and repaired copies of its files."""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.data.check import annotation_findings
from mrcnn_cli.data.check.faults import FAULTS, Finding, ordered
from mrcnn_cli.data.check.pictures import Picture, look_at_all, picture_findings
from mrcnn_cli.data.check.repair import repaired
from mrcnn_cli.data.check.tables import Split, Table
from mrcnn_cli.data.coco_file import read_content, without_collecting
from mrcnn_cli.data.dataset_file import FILE_NAME, DatasetFile, dataset_toml, read_dataset_file
from mrcnn_cli.data.loader import SplitConfig
from mrcnn_cli.data.panoptic import PanopticMaps, is_panoptic
from mrcnn_cli.engine.anchor_fit import anchors_of, best_overlaps, objects_of
from mrcnn_cli.engine.files import make_folder, write_bytes
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.errors import UserError

ROUNDS = 3  # of repairs: what is left out can make a box or an area disagree that did not before
Progress = Callable[[int, int], None]
# COCO's borders of small, medium and large, in pixels of the network's input.
SIZES = (("small", 0.0, 32.0), ("medium", 32.0, 96.0), ("large", 96.0, np.inf))


@dataclass(frozen=True)
class Source:
    """A data set as a person names it: splits by name, in the order that the first one sets classes."""

    name: str
    splits: dict[str, SplitConfig]


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        source: what was looked at.
        tables: of the splits that could be read.
        findings: errors first.
        pictures: per table those of its images; None where nobody looked.
    """

    source: Source
    tables: list[Table]
    findings: list[Finding]
    pictures: list[list[Picture]] | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Findings by severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found.get(severity, 0) for severity in ("error", "warning", "note")}

    def by_fault(self) -> dict[str, list[Finding]]:
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.fault, []).append(finding)
        return groups


def find_source(data: Path | None, images: Sequence[Path] = (), annotations: Sequence[Path] = ()) -> Source:
    """A prepared data set, or folders of images with their COCO files.

    Raises:
        UserError: neither or both, or not as many folders as files.
    """
    if data is not None and (images or annotations):
        raise UserError(f"{data}: give a prepared data set or --images and --annotations, not both")
    if data is not None:
        content = read_dataset_file(data)
        names = sorted(content.splits, key=lambda name: name != "train")
        return Source(content.name, {name: content.splits[name] for name in names})
    if not images or len(images) != len(annotations):
        raise UserError(
            f"{len(images)} folders (--images) and {len(annotations)} files (--annotations): name a prepared data set, "
            "or one COCO file for each folder of images"
        )
    splits: dict[str, SplitConfig] = {}
    for folder, file in zip(images, annotations, strict=True):
        name = file.stem
        while name in splits:
            name += "'"
        splits[name] = SplitConfig(images=folder, annotations=file)
    return Source(next(iter(splits)), splits)


def only(source: Source, split: str | None) -> Source:
    """The same with one split; all where none is named.

    Raises:
        UserError: there is no such split.
    """
    if split is None:
        return source
    if split not in source.splits:
        raise UserError(f"{source.name}: has no split '{split}', only {', '.join(source.splits)}; name one of them")
    return Source(source.name, {split: source.splits[split]})


def check(
    source: Source,
    config: RunConfig | None = None,
    *,
    pixels: bool = True,
    workers: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Everything that is wrong with a data set.

    Args:
        source: from `find_source`.
        config: a recipe, whose anchors must match the objects; None: not asked.
        pixels: look into the image files too.
        workers: processes that do.
        progress: told how many of how many images are done.
    """
    with without_collecting():
        splits, findings = read_splits(source)
        tables, found = annotation_findings(splits)
    findings += found
    if config is not None:
        findings += anchor_findings(tables, config)
    pictures = None
    if pixels:
        pictures = look_at_all(tables, workers, progress)
        findings += picture_findings(tables, pictures)
    return Report(source, tables, ordered(findings), pictures)


def read_splits(source: Source) -> tuple[list[Split], list[Finding]]:
    """The content of all annotation files, of panoptic ones the things, and which cannot be read."""
    splits, findings = [], []
    for name, split in source.splits.items():
        assert split.images is not None
        assert split.annotations is not None
        try:
            content = read_content(split.annotations)
            if is_panoptic(content):
                content = PanopticMaps(split.annotations, content, None).objects(content, masks=True)
            splits.append(Split(name, split.images, split.annotations, content))
        except UserError as error:
            findings.append(Finding("unreadable-file", name, str(split.annotations), str(error)))
    return splits, findings


def anchor_findings(tables: Sequence[Table], config: RunConfig) -> list[Finding]:
    """For each split, class and size the objects whose best anchor would still count as background."""
    anchors = anchors_of(config)
    objects = objects_of(tables, config)
    if anchors is None or not len(objects):
        return []
    bound = anchors.negative_iou
    missed = best_overlaps(objects, anchors) < bound
    extent = np.sqrt(objects.sides.prod(axis=1))
    findings = []
    for number, table in enumerate(tables):
        for name in dict.fromkeys(objects.names[missed & (objects.split == number)].tolist()):
            for size, low, high in SIZES:
                group = (objects.split == number) & (objects.names == name) & (extent >= low) & (extent < high)
                chosen = np.flatnonzero(group & missed)
                if not len(chosen):
                    continue
                width, height = np.median(objects.sides[chosen], axis=0)
                words = (
                    f"{len(chosen):,} of {group.sum():,} {size} objects of class '{name}' (median {width:.0f} x "
                    f"{height:.0f} px as the network sees them) overlap every anchor by less than {bound:g}"
                )
                findings.append(table.finding("no-anchor", int(objects.row[chosen[0]]), words))
    return findings


def fix(report: Report, out: Path) -> tuple[Counter[str], Report]:
    """Write repaired copies and dataset.toml into `out`; what was mended how often, and what is left.

    Raises:
        UserError: a file of the data set would be overwritten, or the folder cannot be written.
    """
    make_folder(out)
    targets = {table.split.name: out / f"{table.split.name}.json" for table in report.tables}
    originals = {table.split.path.resolve() for table in report.tables}
    originals |= {path.with_name(FILE_NAME) for path in originals}
    taken = [path for path in (*targets.values(), out / FILE_NAME) if path.resolve() in originals]
    if taken:
        raise UserError(f"{taken[0]}: is the data set itself, which is never written over; choose another folder")
    mended: Counter[str] = Counter()
    tables, findings = report.tables, report.findings
    for _ in range(ROUNDS):
        contents, done = repaired(tables, findings)
        mended.update(done)
        splits = [
            Split(table.split.name, Path(os.path.abspath(table.split.folder)), targets[table.split.name], content)
            for table, content in zip(tables, contents, strict=True)
        ]
        tables, findings = annotation_findings(splits)
        if not any(FAULTS[finding.fault].remedy for finding in findings):
            break
    classes = dict.fromkeys(table.categories[number] for table in tables for number in sorted(table.categories))
    if not classes:
        raise UserError(f"{report.source.name}: no annotation file with a class can be read, so nothing can be mended")
    files = {split.name: SplitConfig(images=split.folder, annotations=Path(split.path.name)) for split in splits}
    for split in splits:
        write_bytes(split.path, json.dumps(split.content).encode())
    prepared = DatasetFile(name=report.source.name, classes=tuple(classes), splits=files)
    write_bytes(out / FILE_NAME, dataset_toml(prepared).encode())
    left = findings
    if report.pictures is not None:
        known = [
            {image.id: picture for image, picture in zip(table.images, pictures, strict=True)}
            for table, pictures in zip(report.tables, report.pictures, strict=True)
        ]
        pictures = [[found[i.id] for i in table.images] for table, found in zip(tables, known, strict=True)]
        left += picture_findings(tables, pictures)
    left += [finding for finding in report.findings if finding.fault in ("no-anchor", "unreadable-file")]
    return mended, Report(report.source, tables, ordered(left))


def summary(report: Report) -> dict[str, Any]:
    """The report for JSON."""
    return {
        "name": report.source.name,
        "images": sum(len(table.images) for table in report.tables),
        "annotations": sum(len(table.split.content["annotations"]) for table in report.tables),
        "counts": report.counts,
        "faults": {name: len(found) for name, found in report.by_fault().items()},
        "findings": [finding.record() | {"remedy": FAULTS[finding.fault].remedy} for finding in report.findings],
    }
