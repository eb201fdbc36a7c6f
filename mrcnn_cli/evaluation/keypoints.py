"""What object keypoint similarity takes for near: the sigmas (https://cocodataset.org/#keypoints-eval)."""

from collections.abc import Sequence

from mrcnn_cli.errors import UserError

# How far annotators disagree about a keypoint, in parts of the square root of the object's area: COCO's measurement on
# redundantly annotated people.
COCO_SIGMAS = {
    "nose": 0.026,
    "left_eye": 0.025,
    "right_eye": 0.025,
    "left_ear": 0.035,
    "right_ear": 0.035,
    "left_shoulder": 0.079,
    "right_shoulder": 0.079,
    "left_elbow": 0.072,
    "right_elbow": 0.072,
    "left_wrist": 0.062,
    "right_wrist": 0.062,
    "left_hip": 0.107,
    "right_hip": 0.107,
    "left_knee": 0.087,
    "right_knee": 0.087,
    "left_ankle": 0.089,
    "right_ankle": 0.089,
}
# Where nobody has measured it: between a person's eyes (.025) and hips (.107).
UNIFORM_SIGMA = 0.05


def keypoint_sigmas(names: Sequence[str], given: float | Sequence[float] | None = None) -> tuple[float, ...]:
    """A sigma for each keypoint: what is given, else COCO's for COCO's 17 names, else UNIFORM_SIGMA for all.

    Args:
        names: of the keypoints.
        given: one for all, or one for each.

    Raises:
        UserError: a wrong number of them.
    """
    if given is None:
        known = len(names) == len(COCO_SIGMAS) and all(name in COCO_SIGMAS for name in names)
        return tuple(COCO_SIGMAS[name] if known else UNIFORM_SIGMA for name in names)
    sigmas = (float(given),) * len(names) if isinstance(given, int | float) else tuple(map(float, given))
    if len(sigmas) != len(names):
        raise UserError(
            f"evaluate.keypoint_sigmas: has {len(sigmas)} values, but there are {len(names)} keypoints "
            f"({', '.join(names)}); give one for each, or one number for all"
        )
    return sigmas
