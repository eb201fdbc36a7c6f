"""Everything that is wrong with a data set, found before the first training step."""

from collections.abc import Sequence

import numpy as np

from mrcnn_cli.data.check.classes import class_findings
from mrcnn_cli.data.check.faults import Finding
from mrcnn_cli.data.check.geometry import box_findings, crossing, polygon_findings, repeated_findings
from mrcnn_cli.data.check.keypoints import keypoint_findings
from mrcnn_cli.data.check.tables import Split, Table, read_table
from mrcnn_cli.data.shape_faults import whole


def annotation_findings(splits: Sequence[Split]) -> tuple[list[Table], list[Finding]]:
    """What makes sense of each split, and the faults that the annotation files show by themselves."""
    tables, findings = [], []
    for split in splits:
        table, found = read_table(split)
        tables.append(table)
        findings += found
        crossed = crossing(table.polygons)
        findings += box_findings(table, crossed) + polygon_findings(table, crossed) + repeated_findings(table)
        findings += _missing_masks(table) + _empty_images(table)
    return tables, findings + class_findings(tables) + keypoint_findings(tables)


def _missing_masks(table: Table) -> list[Finding]:
    masked = np.zeros(len(table), bool)
    masked[table.polygons.owner] = True
    masked[list(table.encodings)] = True
    if not masked.any():
        return []
    return [
        table.finding("mask-missing", a, f"has no mask; {masked.sum():,} others have one")
        for a in np.flatnonzero(~masked).tolist()
        if not table.entry(a).get("segmentation")  # else its fault is named already
    ]


def _empty_images(table: Table) -> list[Finding]:
    """By the annotations as they are in the file: faulty ones count, so that one fault is not told twice."""
    used = {whole(annotation.get("image_id")) for annotation in table.split.content["annotations"]}
    where = table.split.name, str(table.split.path)
    return [
        Finding("image-empty", *where, "has no objects", image.file_name, image.id, None, ("images", image.place, -1))
        for image in table.images
        if image.id not in used
    ]
