"""One image of 800 x 1333 pixels through Mask R-CNN R50-FPN: ours and torchvision's, the same weights, side by side.

    python benchmarks/bench_prediction.py --threads 2 --rounds 5 --json benchmarks/results/prediction.json

From pixels to 100 detections with masks: boxes, scores and labels, and the masks as run-length encodings (ours) or as
images of the picture's size (torchvision's own form, which costs it no encoding here). Timed in turn in one process.
torchvision runs as it comes and once more channels last, the layout that ours has. Detections are compared first.
"""

import argparse
import json
from pathlib import Path

import torch
from torchvision_pair import config, report, report_peak, same_in_ours, torchvisions

from mrcnn_cli.engine.memory import keep_freed_memory
from mrcnn_cli.structures import ImageBatch

DETECTIONS = 100
SIZE = (800, 1333)
CHANNELS_LAST = "torchvision, channels last"


def a_picture():
    """[3, H, W] uint8: noise of all scales, so that every level has something to say."""
    random = torch.Generator().manual_seed(1)
    picture = torch.zeros(3, *SIZE)
    for cells in (5, 20, 80, 320):
        noise = torch.randn(1, 3, cells, cells * 5 // 3, generator=random)
        picture += torch.nn.functional.interpolate(noise, SIZE, mode="bilinear")[0]
    return (127 + 40 * picture).clamp(0, 255).to(torch.uint8)


def threshold_between(theirs, picture):
    """A score that exactly DETECTIONS detections exceed, in the middle between two."""
    theirs.roi_heads.score_thresh, theirs.roi_heads.detections_per_img = 0.0, DETECTIONS + 1
    with torch.inference_mode():
        [found] = theirs([picture.float() / 255])
    theirs.roi_heads.detections_per_img = DETECTIONS
    return float(found["scores"][-2:].mean())


def contestants(picture, threshold, names):
    """name -> the work; a model that is not named is not kept."""
    theirs, works = torchvisions().eval(), {}
    theirs.roi_heads.score_thresh = threshold
    if "mrcnn" in names:
        ours = same_in_ours(theirs, config(score_threshold=threshold)).eval()
        batch = ImageBatch.collate([picture])
        works["mrcnn"] = lambda: ours.predict(batch)[0]
    if "torchvision" in names:
        works["torchvision"] = lambda: theirs([picture.float() / 255])[0]
    if CHANNELS_LAST in names:
        last = torchvisions().eval().to(memory_format=torch.channels_last)
        last.load_state_dict(theirs.state_dict())
        last.roi_heads.score_thresh = threshold
        works[CHANNELS_LAST] = lambda: last([picture.float() / 255])[0]
    return {name: torch.inference_mode()(work) for name, work in works.items()}


def compared(ours, theirs):
    """How many detections are the same and how far they lie apart; raises unless nearly all are.

    Rounding through fifty layers may turn the order of two boxes round, and another one is suppressed.
    """
    if not len(ours) == len(theirs["scores"]) == DETECTIONS:
        raise SystemExit(f"{len(ours)} detections against {len(theirs['scores'])}: not timed")
    distance = (ours.boxes[:, None] - theirs["boxes"]).abs().amax(2)
    distance[ours.labels[:, None] != theirs["labels"] - 1] = torch.inf
    nearest, index = distance.min(1)
    same = (nearest < 0.5) & ((ours.scores - theirs["scores"][index]).abs() < 1e-3)
    if same.sum() < 0.95 * DETECTIONS:
        raise SystemExit(f"only {int(same.sum())} of {DETECTIONS} detections are the same: not timed")
    return {"detections": DETECTIONS, "same": int(same.sum()), "box_difference": float(nearest[same].max())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", help="run this contestant once, print its peak memory in MB and stop")
    parser.add_argument("--threshold", type=float, help="of the score; default: found by a run of torchvision's")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    picture = a_picture()
    if arguments.alone:
        contestants(picture, arguments.threshold, [arguments.alone])[arguments.alone]()
        report_peak()
        return
    threshold = arguments.threshold or threshold_between(torchvisions().eval(), picture)
    works = contestants(picture, threshold, ["mrcnn", "torchvision", CHANNELS_LAST])
    facts = compared(works["mrcnn"](), works["torchvision"]())
    print(f"{facts['same']} of {DETECTIONS} detections the same, boxes within {facts['box_difference']:.2f} px")
    facts |= {"image": SIZE, "score_threshold": threshold}
    result = report(__file__, works, arguments.rounds, facts, ["--threshold", str(threshold)])
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
