"""Broken and foreign files: named, and the rest goes on."""

import json

import pytest

from mrcnn_cli.data.formats import FORMATS, guess
from mrcnn_cli.data.formats.source import Source, number, parse_xml
from mrcnn_cli.errors import UserError

BOX = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox></object>"
VOC = "<annotation><filename>{}.png</filename><size><width>60</width><height>40</height></size>{}</annotation>"


def test_what_cannot_be_guessed_lists_what_was_looked_for(write, tmp_path):
    write("notes.txt", "nothing here")
    with pytest.raises(UserError, match="cannot be guessed") as caught:
        guess(Source(tmp_path))
    assert all(f"{name}: {form.looked_for}" in str(caught.value) for name, form in FORMATS.items())
    assert str(caught.value).endswith("--format")


def test_a_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(UserError, match="gone: no such file or folder"):
        Source(tmp_path / "gone")
    with pytest.raises(UserError, match="no such folder of images; check --images"):
        Source(tmp_path, tmp_path / "gone")


def test_entities_that_would_fill_the_memory_are_refused(write):
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>'
    with pytest.raises(UserError, match="declares XML entities"):
        parse_xml(write("bomb.xml", bomb))
    secret = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
    with pytest.raises(UserError, match="declares XML entities"):
        parse_xml(write("file.xml", secret))


def test_a_broken_xml_file_is_named_and_the_others_are_read(write, paint, read, tmp_path):
    for name in "abc":
        paint(f"{name}.png")
        write(f"{name}.xml", VOC.format(name, BOX))
    write("b.xml", "<annotation><object>")
    found = read(tmp_path)
    assert [picture.path.name for picture in found.pictures] == ["a.png", "c.png"]
    assert [line.split(": ")[:2] for line in found.faults] == [[str(tmp_path / "b.xml"), "not XML"]]


def test_an_object_with_a_fault_is_named_and_the_others_are_read(write, paint, read, tmp_path):
    paint("a.png")
    write("a.xml", VOC.format("a", BOX + BOX.replace("9</xmax>", "nine</xmax>") + BOX.replace("cat", "")))
    found = read(tmp_path)
    assert len(found.instances) == 1
    assert "a.xml: object 2: " in found.faults[0]
    assert "a.xml: object 3: has no name" in found.faults[1]


def coco(write, paint, **changes):
    paint("a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}],
    }
    content["annotations"][0] |= changes
    return write("a.json", content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 9}, "its image_id 9 is no image's"),
        ({"category_id": 9}, "its category_id 9 is no category's"),
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, "its run lengths are of the size [4, 4]"),
        ({"segmentation": {"size": [40, 60], "counts": [5]}}, "the counts add up to 5 pixels"),
        ({"bbox": None}, "a polygon needs at least 3 points"),
        ({"bbox": [1, 2]}, "not enough values"),
    ],
)
def test_a_faulty_coco_annotation_is_named_by_its_id(write, paint, read, changes, message):
    found = read(coco(write, paint, **changes))
    assert len(found.pictures) == 1
    assert found.instances == []
    assert len(found.faults) == 1
    assert "a.json: annotation 1: " in found.faults[0]
    assert message in found.faults[0]


def test_coco_takes_all_forms_of_masks(write, paint, read):
    plain = {"size": [40, 60], "counts": [3, 5, 2392]}
    (first,) = read(coco(write, paint, segmentation=plain)).instances
    compressed = {"size": [40, 60], "counts": first.segmentation["counts"].decode()}
    (second,) = read(coco(write, paint, segmentation=compressed)).instances
    assert first.segmentation == second.segmentation
    (flat,) = read(coco(write, paint, segmentation=[1, 2, 9, 2, 9, 8])).instances
    assert flat.segmentation == [[1, 2, 9, 2, 9, 8]]
    short = read(coco(write, paint, segmentation=[[1, 2, 9, 2], [1, 2, 9, 2, 9, 8]]))
    assert short.instances[0].segmentation == [[1, 2, 9, 2, 9, 8]]
    assert short.notes[0].startswith("1 polygon with fewer than 3 points or half a point left out")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "has fewer than 4 numbers"),
        ("0 120 30 20 10", "divide pixels by it"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "7 coordinates, which make no points"),
        ("cat 0.5 0.5 0.2 0.2", "invalid literal"),
        ("0 nan 0.5 0.2 0.2", "is not a finite number"),
    ],
)
def test_a_faulty_line_of_yolo_is_named(write, paint, read, tmp_path, line, message):
    paint("images/a.png")
    write("data.yaml", "train: images\nnames: [cat]\n")
    write("labels/a.txt", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    found = read(tmp_path)
    assert len(found.instances) == 1
    assert "labels/a.txt: line 2: " in found.faults[0]
    assert message in found.faults[0]


def test_several_images_that_could_be_meant_are_a_fault(write, paint, read, tmp_path):
    for folder in ("x", "y"):
        paint(f"{folder}/a.png")
    write("annotations.csv", "a.png,1,2,3,4,cat\n")
    assert "no such image, or several that could be it" in read(tmp_path).faults[0]
    assert read(tmp_path, tmp_path / "x").faults == []


def test_numbers_may_have_a_decimal_comma_and_must_be_finite():
    assert [number("1,5"), number(" 2.5 "), number("-3")] == [1.5, 2.5, -3.0]
    for text in ("nan", "inf", "", None, "x"):
        with pytest.raises(ValueError):
            number(text)


@pytest.mark.parametrize("content", [[], {}, {"annotations": {}}, {"annotations": [1]}, {"images": [1]}, 3, None, "x"])
def test_json_of_no_known_form_is_no_format(write, content, tmp_path):
    write("a.json", json.dumps(content))
    with pytest.raises(UserError, match="cannot be guessed"):
        guess(Source(tmp_path))
