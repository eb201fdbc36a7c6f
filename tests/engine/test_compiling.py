"""train.compile: the losses of the model itself, few compilations, the same bits each time, files as without."""

import pytest
import torch

from mrcnn_cli.data.loader import training_batches
from mrcnn_cli.engine import compiling, library
from mrcnn_cli.engine.checkpoint import read_tensors
from mrcnn_cli.engine.files import read_rows
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import Trainer, train
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model
from mrcnn_cli.structures import ImageBatch, Targets
from tests.engine.test_train import digest

RECIPE = "nuclei_scratch"
COMPILED = {"train.compile": True, "train.compile_step": 128}


def run_of(tiny, folder, device="cpu", **more):
    return prepare(read_config(RECIPE, {**tiny, **COMPILED, **more}), folder, device)


def has_first_losses_of(folder, plain, rel):
    losses, wanted = (read_rows(run / "metrics.jsonl")[0] for run in (folder, plain))
    for name in [name for name in wanted if name.startswith("loss")]:
        assert losses[name] == pytest.approx(wanted[name], rel=rel), name


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without its C++ half: what is traced runs as it is. Returns how many graphs there are so far."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, dynamic: compiled(plain, dynamic=dynamic, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_the_number_of_compilations_is_bounded_and_losses_are_the_models_own(traced, tiny, tmp_path):
    run = run_of(tiny, tmp_path, **{"train.batch_size": 1})
    # In double, where rounding lets no other proposal be sampled.
    model, plain = Trainer(run).model.double(), build_model(run.config.model, len(run.train.classes)).double().train()
    plain.load_state_dict(model.state_dict())
    [(images, targets)] = training_batches(run.train, run.config.data, batch_size=1, seed=0, steps=1)
    for rows in range(96, 257, 32):
        for columns in (96, 128, 192):
            padded = images.padded(rows, columns)
            losses = model(padded, targets)
            expected = plain(padded, targets)
            torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-7)
    # Backbone, neck and RPN for four sizes, each filled or not; one number of samples, and some of positives.
    assert 10 < traced() <= 3 * 4 * 2 + 1 + 4
    assert not torch._dynamo.utils.counters["graph_break"]


def test_without_gradients_and_when_undone_the_model_is_as_it_was(traced, tiny, tmp_path):
    model = Trainer(run_of(tiny, tmp_path)).model
    images = ImageBatch(torch.zeros(1, 3, 96, 160, dtype=torch.uint8), [(96, 160)], [(96, 160)])
    with torch.no_grad():
        model.eval().predict(images)
    assert traced() == 0
    assert not any("_orig_mod" in name for name in model.state_dict())
    assert isinstance(model.backbone.forward, compiling._Part)
    compiling.undo(model)
    for module in model.modules():
        assert "forward" not in vars(module)
        assert "of_regions" not in vars(module)


def test_heads_that_take_statistics_of_regions_are_left_out(traced, tiny, tmp_path):
    model = Trainer(run_of(tiny, tmp_path, **{"model.mask_head.norm": "batch_norm"})).model
    assert "of_regions" in vars(model.box_head)
    assert "of_regions" not in vars(model.mask_head)


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("retinanet_r50_fpn_1x", {"model.backbone.width": 8, "model.fpn.channels": 16}),
        ("faster_rcnn_r50_c4_1x", {"model.backbone.width": 8, "model.box_head.samples_per_image": 16}),
        ("ssd300_vgg16", {}),
        ("cascade_rcnn_r50_fpn_1x", {"model.backbone.width": 8, "model.fpn.channels": 16}),
        ("rpn_r50_fpn_1x", {"model.backbone.width": 8, "model.fpn.channels": 16}),
    ],
)
def test_every_kind_of_model_is_compiled_without_a_break(traced, recipe, overrides):
    torch.manual_seed(0)
    model = build_model(read_config(recipe, overrides).model, 2).train()
    side = 300 if recipe.startswith("ssd") else 160
    pixels = torch.randint(0, 255, (1, 3, side, side), dtype=torch.uint8)
    images = ImageBatch(pixels.contiguous(memory_format=torch.channels_last), [(side, side)], [(side, side)])
    targets = [Targets(torch.tensor([[20.0, 30.0, 110.0, 120.0]]), torch.tensor([1]), torch.zeros(0, 4), seed=1)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = {name: loss.detach() for name, loss in model(images, targets).items()}
    model.load_state_dict(before)
    compiling.compile_parts(model, 128)
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert traced() > 1
    assert not torch._dynamo.utils.counters["graph_break"]
    for name, loss in losses.items():
        assert float(loss.detach()) == pytest.approx(float(expected[name]), rel=2e-2), name
    assert any(p.grad is not None for p in model.backbone.parameters())


def test_regions_are_padded_to_few_numbers():
    assert [compiling.region_count(count) for count in (1, 16, 17, 25, 33, 49, 1024, 1025)] == [
        16, 16, 24, 32, 48, 64, 1024, 1536,
    ]  # fmt: skip
    assert len({compiling.region_count(count) for count in range(1, 2049)}) == 15


def test_a_part_that_is_not_finite_is_found_though_it_is_compiled(traced, tiny, tmp_path):
    run = run_of(tiny, tmp_path / "run", **{"train.learning_rate": 1e30, "train.clip_norm": 1e30})
    with pytest.raises(UserError, match=r"step [23]: .* first inside of backbone"):
        list(train(run))


def test_a_missing_compiler_is_named(monkeypatch, tiny, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="train.compile: needs a compiler where it runs, and there is no 'no-such-comp"):
        run_of(tiny, tmp_path)


def test_sizes_that_do_not_fit_the_strides_are_refused(tiny, tmp_path):
    with pytest.raises(UserError, match="train.compile: needs images whose sides are multiples of 32, but .* is 0"):
        run_of(tiny, tmp_path, **{"data.size_divisor": 0})


def test_a_compiler_that_fails_ends_training_in_one_line(monkeypatch, tiny, tmp_path):
    def broken(graph, inputs):
        raise RuntimeError("no room")

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda plain, dynamic: compiled(plain, dynamic=dynamic, backend=broken))
    torch._dynamo.reset()
    with pytest.raises(UserError, match=r"train.compile: the compiler failed \(.*no room.*\); leave the key out"):
        list(train(run_of(tiny, tmp_path / "run")))


@pytest.mark.slow
def test_two_runs_and_one_that_is_resumed_have_the_same_bits(tiny, tmp_path):
    for name in ("one", "two"):
        torch._dynamo.reset()
        list(train(run_of(tiny, tmp_path / name)))
    parts = tmp_path / "parts"
    torch._dynamo.reset()
    list(train(run_of(tiny, parts, **{"train.steps": 2})))
    torch._dynamo.reset()
    list(train(run_of(tiny, parts), resume=True))
    assert digest(tmp_path / "one", "state.safetensors") == digest(tmp_path / "two", "state.safetensors")
    assert digest(tmp_path / "one", "state.safetensors") == digest(parts, "state.safetensors")
    plain = tmp_path / "plain"
    list(train(run_of(tiny, plain, **{"train.compile": False})))
    tensors, expected = (read_tensors(folder / "last.safetensors")[0] for folder in (tmp_path / "one", plain))
    assert tensors.keys() == expected.keys()
    has_first_losses_of(tmp_path / "one", plain, rel=1e-4)
    assert library.load(tmp_path / "one", "cpu").step == 4


@pytest.mark.gpu
def test_a_compiled_run_on_a_gpu_has_the_losses_of_one_that_is_not(tiny, tmp_path):
    torch._dynamo.reset()
    list(train(run_of(tiny, tmp_path / "compiled", "cuda")))
    list(train(run_of(tiny, tmp_path / "plain", "cuda", **{"train.compile": False})))
    has_first_losses_of(tmp_path / "compiled", tmp_path / "plain", rel=1e-3)
