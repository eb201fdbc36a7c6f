"""Which layers learn, and how fast."""

import pytest
import torch

from mrcnn_cli.engine import layers
from mrcnn_cli.engine.checkpoint import read_tensors
from mrcnn_cli.engine.optimizer import TrainConfig, build_optimizer
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import Trainer, train
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model

RECIPE = "nuclei_scratch"


@pytest.fixture
def model(tiny):
    with torch.device("meta"):
        return build_model(read_config(RECIPE, tiny).model, 1)


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def below(model, *modules):
    return {name for name, _ in model.named_parameters() if name.startswith(tuple(f"{m}." for m in modules))}


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        ("all", ("backbone", "fpn", "rpn", "box_head", "mask_head")),
        ("heads", ("fpn", "rpn", "box_head", "mask_head")),
        ("backbone", ("backbone",)),
        ("backbone.1", ("backbone.stem",)),
        ("backbone.2, mask_head", ("backbone.stages.0", "mask_head")),
        ("heads,backbone.4+", ("fpn", "rpn", "box_head", "mask_head", "backbone.stages.2", "backbone.stages.3")),
        ("backbone.stages.3,box_head.logits", ("backbone.stages.3", "box_head.logits")),
    ],
)
def test_layers_are_named_as_people_name_them(model, words, modules):
    layers.restrict(model, words)
    assert learning(model) == below(model, *modules)


def test_parts_of_a_backbone_without_stages_are_its_blocks():
    with torch.device("meta"):
        model = build_model(read_config("mask_rcnn_lite0_fpn").model, 1)
    layers.restrict(model, "backbone.16+")
    assert learning(model) == below(model, "backbone.blocks.14", "backbone.blocks.15")


def test_what_the_recipe_freezes_stays_frozen(tiny):
    with torch.device("meta"):
        model = build_model(read_config(RECIPE, {**tiny, "model.backbone.frozen_stages": 2}).model, 1)
    layers.restrict(model, "backbone")
    assert learning(model) == below(model, "backbone.stages.1", "backbone.stages.2", "backbone.stages.3")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("head", "'head': no such layers; known: all, heads, backbone.N, backbone.N+, backbone, fpn, rpn, box_head"),
        ("backbone.6", "'backbone.6': the backbone has the parts 1 to 5, the stem being 1"),
        ("backbone.0+", "the parts 1 to 5"),
        ("", "'': no such layers"),
    ],
)
def test_an_unknown_name_is_an_error_that_tells_the_known_ones(model, words, message):
    with pytest.raises(UserError, match="train.layers: .*"):
        layers.restrict(model, words)
    with pytest.raises(UserError) as error:
        layers.restrict(model, words)
    assert message in str(error.value)


def test_nothing_that_learns_is_an_error(tiny):
    with torch.device("meta"):
        model = build_model(read_config(RECIPE, {**tiny, "model.backbone.frozen_stages": 2}).model, 1)
    with pytest.raises(UserError, match="nothing of that learns"):
        layers.restrict(model, "backbone.1")


def test_layers_have_learning_rates_of_their_own_and_the_last_word_counts(model):
    config = TrainConfig(learning_rate=1.0, backbone_factor=0.5, learning_rate_factors="heads=2, rpn=3e-1")
    optimizer = build_optimizer(config, model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: group["factor"] for group in optimizer.param_groups for p in group["params"]}
    assert found.keys() == learning(model)
    for name, factor in found.items():
        expected = 0.5 if name.startswith("backbone.") else 0.3 if name.startswith("rpn.") else 2.0
        assert factor == expected, name


@pytest.mark.parametrize("text", ["heads", "heads=0", "heads=-1", "heads=fast", "hands=1"])
def test_a_faulty_factor_is_an_error(model, text):
    with pytest.raises(UserError, match="train.learning_rate_factors: '"):
        build_optimizer(TrainConfig(learning_rate_factors=text), model)


def test_layers_that_do_not_learn_keep_every_bit_and_their_statistics(tiny, tmp_path):
    changes = {"train.layers": "heads,backbone.5", "train.evaluate_every": 2, "train.average": 0.9}
    run = prepare(read_config(RECIPE, {**tiny, **changes}), tmp_path / "run", "cpu")
    before = {name: tensor.clone() for name, tensor in Trainer(run).model.state_dict().items()}
    list(train(run))
    for file in ("state.safetensors", "last.safetensors"):
        tensors = {name.removeprefix("model."): t for name, t in read_tensors(run.folder / file)[0].items()}
        for name, tensor in before.items():
            rests = name.startswith(
                ("backbone.stem.", "backbone.stages.0.", "backbone.stages.1.", "backbone.stages.2.")
            )
            assert torch.equal(tensors[name], tensor) == rests, name


def test_more_layers_learn_when_the_run_goes_on_with_them(tiny, tmp_path):
    def run(**changes):
        settings = {**tiny, **{key.replace("__", "."): value for key, value in changes.items()}}
        return prepare(read_config(RECIPE, settings), tmp_path / "run", "cpu")

    list(train(run(train__layers="heads")))
    first, _ = read_tensors(tmp_path / "run" / "state.safetensors")
    assert not any(name.startswith("optimizer.backbone.") for name in first)
    list(train(run(train__layers="all", train__steps=6), resume=True))
    second, _ = read_tensors(tmp_path / "run" / "state.safetensors")
    name = "backbone.stages.3.0.conv1.weight"
    assert not torch.equal(first[f"model.{name}"], second[f"model.{name}"])
    assert second[f"optimizer.{name}.step"] == 2
    heads = {name for name in first if name.startswith("optimizer.") and name.endswith(".step")}
    assert heads
    assert all(second[name] == 6 for name in heads)
