"""mrcnn config: recipes are listed, shown and checked."""

import tomllib

import pytest

from mrcnn_cli import config as recipes


def test_list_gives_each_recipe_with_the_first_line_of_its_comment(mrcnn):
    outcome = mrcnn("config", "list")
    assert outcome.status == 0
    for name, path in recipes.recipes().items():
        first = path.read_text().splitlines()[0].removeprefix("# ")
        assert any(line.split() == [name, *first.split()] for line in outcome.out.splitlines())
    assert {row["name"] for row in mrcnn("config", "list", "--json").json} == set(recipes.recipes())


def test_show_prints_a_recipe_with_all_defaults_that_reads_back_as_itself(mrcnn, tmp_path):
    shown = mrcnn("config", "show", "nuclei", "--set", "train.steps=77").out
    table = tomllib.loads(shown)
    assert table["train"]["steps"] == 77
    assert table["evaluate"]["max_detections"] == 100  # a default, not in the file
    (tmp_path / "mine.toml").write_text(shown)
    assert mrcnn("config", "show", tmp_path / "mine.toml").out == shown
    assert mrcnn("config", "show", "nuclei", "--set", "train.steps=77", "--json").json["train"] == table["train"] | {
        key: None for key in mrcnn("config", "show", "nuclei", "--json").json["train"] if key not in table["train"]
    }


def test_show_of_an_unknown_recipe_names_the_closest(mrcnn):
    outcome = mrcnn("config", "show", "nuclej")
    assert outcome.status == 1
    assert outcome.error == "nuclej: no such recipe or file; did you mean 'nuclei'?"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.step=3", "train.step: unknown key; did you mean 'steps'?"),
        ("model.box_head.nms_treshold=0.6", "model.box_head.nms_treshold: unknown key; did you mean 'nms_threshold'?"),
        ("train.steps=0", "train.steps: input should be greater than or equal to 1, got 0"),
        ("train.steps", "--set train.steps: expected KEY=VALUE, such as train.steps=600"),
        ("train.steps.x=1", "--set train.steps.x: 'train.steps' is a value, not a table"),
    ],
)
def test_a_faulty_override_is_one_clear_line(mrcnn, assignment, message):
    outcome = mrcnn("config", "show", "nuclei", "--set", assignment)
    assert outcome.status == 1
    assert outcome.error.endswith(message)


def test_every_shipped_recipe_is_sound(mrcnn):
    names = list(recipes.recipes())
    outcome = mrcnn("config", "check", *names)
    assert outcome.err == ""
    assert outcome.status == 0
    assert outcome.out.splitlines() == [f"{name}: ok" for name in names]


def test_check_reports_each_faulty_file_and_exits_with_1(mrcnn, tmp_path):
    (tmp_path / "typo.toml").write_text('[model]\nname = "mask_rcn"\n')
    (tmp_path / "broken.toml").write_text("[model\n")
    outcome = mrcnn("config", "check", "nuclei", "typo.toml", "broken.toml", "missing.toml")
    assert outcome.status == 1
    assert outcome.out == "nuclei: ok\n"
    typo, broken, missing = outcome.err.splitlines()
    assert typo.startswith("error: typo.toml: model.name: unknown name 'mask_rcn'; known: ")
    assert broken.startswith("error: broken.toml: not a TOML file")
    assert missing.startswith("error: missing.toml: no such recipe or file")
    rows = mrcnn("config", "check", "nuclei", "broken.toml", "--json").json
    assert [(row["file"], row["ok"]) for row in rows] == [("nuclei", True), ("broken.toml", False)]
    assert rows[0]["error"] is None
    assert "not a TOML file" in rows[1]["error"]


def test_schema_describes_every_table(mrcnn):
    schema = mrcnn("config", "schema").json
    assert set(schema["properties"]) == {"model", "data", "train", "evaluate", "predict"}
    assert schema["$defs"]["TrainConfig"]["properties"]["steps"]["minimum"] == 1


def test_an_unknown_subcommand_names_the_closest(mrcnn):
    outcome = mrcnn("config", "shw")
    assert outcome.status == 2
    assert outcome.error == "no such command 'shw'; did you mean 'show'?"


def test_overrides_leave_the_callers_tables_alone():
    from mrcnn_cli.config import override

    changes = {"model": {"width": 8}, "model.width": 16}
    assert override({}, changes) == {"model": {"width": 16}}
    assert changes["model"] == {"width": 8}
