"""Masks as SVG paths: polygons as they are, run-length encodings exactly along the pixels' edges."""

from typing import Any

import numpy as np

from mrcnn_cli.data.outlines import as_ring, outlines, signed_area
from mrcnn_cli.views.gallery import svg_path
from mrcnn_cli.views.masks import crop


def mask_path(segmentation: Any, matrix: np.ndarray | None = None) -> str:
    """An SVG path around what a mask covers, to be filled by the rule "nonzero"; "" where it covers nothing.

    Args:
        segmentation: polygons [[x1, y1, x2, y2, ...], ...], or a run-length encoding.
        matrix: [2, 3] by which the outline is moved; None: stays.
    """
    rings = mask_rings(segmentation)
    if matrix is not None:
        rings = [ring @ matrix[:, :2].T + matrix[:, 2] for ring in rings]
    return svg_path(rings)


def mask_rings(segmentation: Any) -> list[np.ndarray]:
    """Closed rings [P, 2] of x, y: parts clockwise as one sees them, holes the other way round.

    Args:
        segmentation: as in `mask_path`.
    """
    if isinstance(segmentation, dict):
        found = crop(segmentation)
        if found is None:
            return []
        left, top, window = found
        outer, holes = outlines(window)
        return [ring + np.array([left, top]) for ring in (*outer, *holes)]
    rings = [as_ring(polygon) for polygon in segmentation]
    # Parts that overlap must go the same way round, else they cancel out.
    return [ring[::-1] if signed_area(ring) < 0 else ring for ring in rings]
