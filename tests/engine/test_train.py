import errno
import hashlib
import json
import os

import pytest
import torch

from mrcnn_cli.engine import files, library
from mrcnn_cli.engine import train as training
from mrcnn_cli.engine.checkpoint import load, read_tensors
from mrcnn_cli.engine.run import read_config
from mrcnn_cli.engine.train import Interrupted, train
from mrcnn_cli.errors import UserError

RECIPE = "nuclei_scratch"


def digest(folder, name="last.safetensors"):
    """Of the weights alone: the metadata holds the recipe, which may differ in what does not matter."""
    tensors, _ = read_tensors(folder / name)
    parts = [name.encode() + tensor.contiguous().numpy().tobytes() for name, tensor in sorted(tensors.items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared):
    """A run of four steps and what it yielded."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    return folder, list(train(prepared(folder)))


def test_a_run_leaves_everything_that_is_promised(finished):
    folder, steps = finished
    names = {path.name for path in folder.iterdir()}
    promised = {"config.toml", "environment.txt", "metrics.jsonl", "losses.png"}
    weights = {"last.safetensors", "best.safetensors"}
    assert promised | weights | {"state.safetensors", "state-2.safetensors"} == names
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [json.loads(json.dumps(step.row())) for step in steps]
    assert [(row["kind"], row["step"]) for row in rows] == [("train", s) for s in (1, 2, 3, 4)] + [("evaluation", 4)]
    for row in rows[:4]:
        terms = ["loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"]
        assert row["loss"] == pytest.approx(sum(row[term] for term in terms), rel=1e-5)
        assert row["learning_rate"] > 0
        assert row["memory_mb"] > 100
    for name in ("mask_ap", "mask_ap50", "box_ap", "box_ap50"):
        assert 0 <= rows[-1][name] <= 1


def test_the_resolved_recipe_stands_for_itself(finished):
    folder, _ = finished
    config = read_config(folder / "config.toml")
    assert config.data.classes == ("nucleus",)
    assert config.model.num_classes == 1
    assert config.data.train.annotations.is_absolute()


def test_two_runs_give_the_same_bits(finished, tmp_path, prepared):
    folder, _ = finished
    list(train(prepared(tmp_path / "again")))
    assert digest(tmp_path / "again") == digest(folder)


def test_the_number_of_workers_changes_no_bit(finished, tmp_path, prepared):
    folder, _ = finished
    list(train(prepared(tmp_path / "workers", data__workers=2)))
    assert digest(tmp_path / "workers") == digest(folder)


def test_another_seed_gives_other_weights(finished, tmp_path, prepared):
    folder, _ = finished
    list(train(prepared(tmp_path / "seed", train__seed=1)))
    assert digest(tmp_path / "seed") != digest(folder)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_run_resumes_to_the_bits_of_the_uninterrupted_one(finished, tmp_path, stop_after, prepared):
    folder, steps = finished
    run = prepared(tmp_path / "run")
    seen = []
    with pytest.raises(Interrupted, match=f"stopped after step {stop_after}"):
        for step in train(run, should_stop=lambda: len(seen) == stop_after):
            seen.append(step)
    resumed = list(train(prepared(tmp_path / "run"), resume=True))
    for name in ("last.safetensors", "best.safetensors", "state.safetensors"):
        assert digest(tmp_path / "run", name) == digest(folder, name)
    losses = [step.values["loss"] for step in seen + resumed if step.kind == "train"]
    assert losses == [step.values["loss"] for step in steps if step.kind == "train"]


def test_resuming_after_a_crash_repeats_only_the_steps_that_were_not_saved(finished, tmp_path, prepared):
    folder, _ = finished
    steps = train(prepared(tmp_path / "run"))
    for step in steps:
        if step.step == 3:  # state was saved after 2; the third step dies with the process
            steps.close()
            break
    assert [row["step"] for row in files.read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]
    resumed = list(train(prepared(tmp_path / "run"), resume=True))
    assert [step.step for step in resumed if step.kind == "train"] == [3, 4]
    assert [row["step"] for row in files.read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 4]
    assert digest(tmp_path / "run") == digest(folder)


def test_a_resumed_run_remembers_how_good_the_best_weights_were(tmp_path, prepared, monkeypatch):
    scores = iter([0.9, 0.1])
    monkeypatch.setattr(training, "evaluate", lambda *a, **k: ({"mask_ap": next(scores), "box_ap": 0.5}, []))
    run = prepared(tmp_path / "run", train__evaluate_every=2)
    seen = []
    with pytest.raises(Interrupted, match="stopped after step 3"):
        for step in train(run, should_stop=lambda: bool(seen) and seen[-1].step == 3):
            seen.append(step)
    list(train(prepared(tmp_path / "run", train__evaluate_every=2), resume=True))
    assert load(tmp_path / "run" / "best.safetensors").step == 2
    assert load(tmp_path / "run" / "last.safetensors").step == 4


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step_and_the_term(tmp_path, prepared):
    run = prepared(tmp_path / "run", train__learning_rate=1e30, train__clip_norm=1e30, train__steps=50)
    with pytest.raises(UserError, match=r"step \d+: loss_\w+ is (nan|inf).*train.learning_rate"):
        list(train(run))


def test_a_full_disk_loses_nothing_that_was_saved(finished, tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    files.write_bytes(path, b"saved before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="last.safetensors: cannot be written: No space left on device"):
        files.write_bytes(path, b"x" * 1000)
    assert path.read_bytes() == b"saved before"
    assert [p.name for p in tmp_path.iterdir()] == ["last.safetensors"]


def test_the_library_trains_loads_and_predicts(finished):
    folder, _ = finished
    model = library.load(folder, device="cpu")
    assert model.classes == ("nucleus",)
    picture = torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    [found, grey] = library.predict(model, [picture, picture[:, :, 0]], score_threshold=0.0)
    assert found.size == grey.size == (48, 64)
    assert len(found.masks) == len(found)


def test_weights_load_the_same_from_the_folder_and_the_file(finished):
    folder, _ = finished
    by_folder, by_file = load(folder), load(folder / "best.safetensors")
    assert by_folder.path == by_file.path
    for one, other in zip(by_folder.model.parameters(), by_file.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x10\x00\x00\x00\x00\x00\x00\x00{broken"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="weights.safetensors: not a checkpoint, or damaged"):
        load(path)


def test_a_truncated_checkpoint_is_named(finished, tmp_path):
    folder, _ = finished
    path = tmp_path / "cut.safetensors"
    path.write_bytes((folder / "last.safetensors").read_bytes()[:-1000])
    with pytest.raises(UserError, match="cut.safetensors: not a checkpoint, or damaged"):
        load(path)


def test_a_checkpoint_of_another_class_count_is_named(finished, tmp_path):
    import safetensors.torch
    from safetensors import safe_open

    folder, _ = finished
    with safe_open(folder / "last.safetensors", framework="pt") as file:
        about = file.metadata()
    tensors, _ = read_tensors(folder / "last.safetensors")
    about["categories"] = json.dumps([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    safetensors.torch.save_file(tensors, tmp_path / "two.safetensors", metadata=about)
    with pytest.raises(UserError, match=r"two.safetensors: does not fit the model: .*another number of classes"):
        load(tmp_path / "two.safetensors")


def test_an_optimiser_state_is_no_model(finished):
    folder, _ = finished
    with pytest.raises(UserError, match="state.safetensors: holds no weights to predict with"):
        load(folder / "state.safetensors")


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(UserError, match="no weights in this folder yet"):
        load(tmp_path)
    with pytest.raises(UserError, match="no such run or checkpoint"):
        load(tmp_path / "missing")


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path, prepared):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be made"):
        list(train(prepared(tmp_path / "file" / "run")))


def test_a_run_does_not_overwrite_another(finished, tiny):
    folder, _ = finished
    with pytest.raises(UserError, match="holds a run already"):
        next(library.train(RECIPE, tiny, out=folder, device="cpu"))


def test_a_disk_that_fills_while_saving_ends_training_and_the_run_goes_on_to_the_same_bits(
    finished, tmp_path, prepared, monkeypatch
):
    folder, _ = finished
    sync, there = os.fsync, []

    def fills(descriptor):
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        there.append(name)
        if len([name for name in there if "state" in name]) > 1:  # from the second state on nothing has room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(files.os, "fsync", fills)
    with pytest.raises(UserError, match="state.safetensors: cannot be written: No space left on device; earlier files"):
        list(train(prepared(tmp_path / "run")))
    monkeypatch.undo()
    assert not list((tmp_path / "run").glob(".*"))
    list(train(prepared(tmp_path / "run"), resume=True))
    for name in ("last.safetensors", "best.safetensors", "state.safetensors"):
        assert digest(tmp_path / "run", name) == digest(folder, name)
