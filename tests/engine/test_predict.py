import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mrcnn_cli.data.loader import SAMPLE
from mrcnn_cli.engine import library
from mrcnn_cli.engine.predict import as_array, find_images, predict_files
from mrcnn_cli.errors import UserError


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A model that has learnt nothing, and so finds something everywhere."""
    folder = tmp_path_factory.mktemp("run") / "run"
    quick = {"train.steps": 1, "predict.score_threshold": 0.0}
    list(library.train("nuclei_scratch", {**tiny, **quick}, out=folder, device="cpu"))
    return library.load(folder, device="cpu")


@pytest.fixture
def pictures(tmp_path):
    """Four pictures in two folders, of which two share a name and two a stem."""
    folder = tmp_path / "in"
    for number, name in enumerate(("a/x.png", "b/x.png", "a/y.png", "a/y.jpg")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.random.default_rng(number).integers(0, 256, (64, 48, 3), dtype=np.uint8)
        Image.fromarray(array).save(path)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_files_folders_and_patterns_name_images_once_and_in_order(pictures):
    names = [path.relative_to(pictures).as_posix() for path in find_images([pictures])]
    assert names == ["a/x.png", "a/y.jpg", "a/y.png", "b/x.png"]
    assert len(find_images([pictures, pictures / "a" / "x.png", f"{pictures}/*/x.png"])) == 4
    assert len(find_images([f"{pictures}/*/x.png"])) == 2


@pytest.mark.parametrize("source", ["missing", "missing/*.png"])
def test_a_source_that_names_nothing_is_refused(tmp_path, source):
    with pytest.raises(UserError, match="no such file or folder, and no file matches"):
        find_images([tmp_path / source])


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images in this folder"):
        find_images([tmp_path])


def test_pictures_of_one_name_do_not_overwrite_each_other(checkpoint, pictures, tmp_path):
    done = list(predict_files(checkpoint, find_images([pictures]), tmp_path / "out"))
    overlays = sorted(p.overlay.relative_to(tmp_path / "out").as_posix() for p in done)
    assert overlays == ["a/x.png", "a/y.png", "a/y.png.png", "b/x.png"]
    assert all(p.overlay.is_file() for p in done)
    assert (tmp_path / "out" / "overview.png").is_file()


def test_predictions_are_a_results_list_that_pycocotools_loads(checkpoint, pictures, tmp_path, capsys):
    files = find_images([pictures])
    done = list(predict_files(checkpoint, files, tmp_path / "out"))
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entries) == sum(len(p.detections) for p in done) > 0
    assert {entry["file_name"] for entry in entries} <= {str(file) for file in files}
    truth = COCO()
    truth.dataset = {
        "images": [{"id": n, "height": 64, "width": 48} for n in range(1, 5)],
        "categories": checkpoint.categories,
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(entries)
    assert len(loaded.anns) == len(entries)
    mask = loaded.annToMask(loaded.anns[1])
    assert mask.shape == (64, 48)
    capsys.readouterr()


def test_a_broken_picture_is_reported_and_the_others_are_done(checkpoint, pictures, tmp_path):
    (pictures / "b" / "broken.png").write_bytes(b"no picture at all")
    told = []
    files = find_images([pictures])
    done = list(
        predict_files(checkpoint, files, tmp_path / "out", on_unreadable=lambda f, e: told.append((f.name, str(e))))
    )
    assert len(done) == 4
    assert [name for name, _ in told] == ["broken.png"]
    with pytest.raises(UserError, match="broken.png"):
        list(predict_files(checkpoint, files, tmp_path / "strict"))


def test_what_is_done_before_an_interruption_is_kept(checkpoint, pictures, tmp_path):
    predictions = predict_files(checkpoint, find_images([pictures]), tmp_path / "out")
    first = next(predictions)
    next(predictions)
    predictions.close()  # as Ctrl-C ends it
    names = {entry["file_name"] for entry in json.loads((tmp_path / "out" / "predictions.json").read_text())}
    assert str(first.path) in names
    assert len(names) == 2
    assert (tmp_path / "out" / "overview.png").is_file()


def test_the_pictures_themselves_are_never_overwritten(checkpoint, pictures):
    before = (pictures / "a" / "x.png").read_bytes()
    with pytest.raises(UserError, match="would overwrite the picture itself"):
        list(predict_files(checkpoint, [pictures / "a" / "x.png"], pictures / "a"))
    assert (pictures / "a" / "x.png").read_bytes() == before


def test_the_score_threshold_is_kept(checkpoint):
    picture = next(iter(sorted((SAMPLE / "val").glob("*.png"))))
    [everything] = library.predict(checkpoint, [picture], score_threshold=0.0)
    middle = float(everything.scores.median())
    [some] = library.predict(checkpoint, [picture], score_threshold=middle)
    assert 0 < len(some) <= len(everything)
    assert float(some.scores.min()) >= middle


def test_arrays_and_pil_images_are_the_same_picture():
    array = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(as_array(Image.fromarray(array)), array)
    assert as_array(array[:, :, 0]).shape == (20, 30, 3)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4), (0, 4, 3), (1, 4, 4, 3)])
def test_an_array_that_is_no_picture_is_refused(shape):
    with pytest.raises(UserError, match=r"an image must be \[H, W, 3\]"):
        as_array(np.zeros(shape, dtype=np.uint8))
