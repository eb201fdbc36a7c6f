"""docs/models.md: the table of the model zoos says of our recipes what they say themselves, and claims no more."""

import re
from pathlib import Path

import pytest

from mrcnn_cli.config import recipes

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "models.md").read_text()
ZOOS = TEXT[TEXT.index("## Recipes of the model zoos") :]  # before it are tables of keys
DETECTRON2 = TEXT[TEXT.index("### Detectron2\n") : TEXT.index("### Detectron\n")]
ROW = re.compile(r"^\| `([^`]+)` \| (?:`(\w+)`)? ?\| ([^|]*)\|(?: (\w*) ?\|)?$", re.M)


def listed(text):
    """Our recipe -> (figures, what was checked), of each row that names one."""
    return {ours: (figures, checked) for _, ours, figures, checked in ROW.findall(text) if ours}


def test_every_row_is_understood():
    rows = [line for line in ZOOS.splitlines() if line.startswith("| `")]
    assert len(ROW.findall(ZOOS)) == len(rows) > 100


def test_recipes_that_are_named_exist():
    named = {ours for _, ours, _, _ in ROW.findall(ZOOS) if ours}
    assert not named - set(recipes())


@pytest.mark.parametrize("name", sorted(recipes()))
def test_figures_that_a_recipe_quotes_from_detectron2_are_those_of_the_table(name):
    comment = recipes()[name].read_text().split("\n\n")[0]
    quoted = re.search(r"Detectron2 lists (.*?) on COCO", comment)
    if quoted is None:
        assert name not in listed(DETECTRON2)
        return
    figures, _ = listed(DETECTRON2)[name]
    assert re.findall(r"\d+\.\d", figures) == re.findall(r"\d+\.\d", quoted[1])


def test_parity_is_claimed_of_those_recipes_alone_that_a_test_compares():
    claimed = {ours for ours, (_, checked) in listed(DETECTRON2).items() if checked == "parity"}
    compared = [
        text for path in (ROOT / "tests" / "models").glob("test_*.py") if "Reference(" in (text := path.read_text())
    ]
    assert claimed == set(recipes()) & set(re.findall(r'"(\w+)"', "".join(compared)))
