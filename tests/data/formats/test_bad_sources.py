"""Broken and foreign files: named, and the rest goes on."""

import copy
import json
import shutil
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrcnn_cli.data.formats import FORMATS, guess
from mrcnn_cli.data.formats.source import Source, number, parse_xml
from mrcnn_cli.engine.prepare import collect, prepare
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


def test_links_that_lead_in_circles_end(write, paint, read, tmp_path):
    paint("images/a.png")
    write("annotations.csv", "a.png,1,2,3,4,cat\n")
    (tmp_path / "images" / "back").symlink_to(tmp_path, target_is_directory=True)
    assert [picture.path for picture in read(tmp_path).pictures] == [tmp_path / "images" / "a.png"]


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


DOCUMENTS = {
    "coco": {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 9, 2, 9, 8]]},
            {"id": 2, "image_id": 1, "category_id": 7, "segmentation": {"size": [40, 60], "counts": [3, 5, 2392]}},
        ],
    },
    "via": {
        "a.png": {
            "filename": "a.png",
            "regions": [
                {
                    "shape_attributes": {"name": "circle", "cx": 9, "cy": 9, "r": 4},
                    "region_attributes": {"class": "cat"},
                },
                {"shape_attributes": {"name": "polygon", "all_points_x": [1, 5, 5], "all_points_y": [1, 1, 5]}},
            ],
        }
    },
    "labelme": {
        "imagePath": "a.png",
        "imageHeight": 40,
        "imageWidth": 60,
        "shapes": [
            {"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "group_id": 1, "shape_type": "polygon"},
            {"label": "cat", "points": [[1, 1], [9, 9]], "group_id": 1, "shape_type": "mask", "mask": "AAAA"},
            {"label": "dog", "points": [[1, 1], [9, 1]], "shape_type": "circle", "flags": {"old": True}},
        ],
    },
    "panoptic": {
        "images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}],
        "categories": [{"id": 7, "name": "cat", "isthing": 1}],
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": [{"id": 5921370, "category_id": 7}]}],
    },
    "cityscapes": {"imgHeight": 40, "imgWidth": 60, "objects": [{"label": "car", "polygon": [[1, 1], [9, 1], [9, 9]]}]},
}
NAMES = {"cityscapes": "a_gtFine_polygons.json"}
JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        10**40,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "../..",
        [],
        [1],
        [[]],
        [None],
        {},
        {"a": 1},
    ]
)


def places(node, path=()):
    """The paths to all nodes of a document."""
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(sorted(DOCUMENTS)))
def test_a_document_with_anything_in_a_place_is_never_a_crash(paint, tmp_path, data, format):
    paint("a.png")
    paint("a_leftImg8bit.png")
    document = copy.deepcopy(DOCUMENTS[format])
    for _ in range(data.draw(st.integers(0, 2))):
        known = [path for path in places(document) if path]
        if not known:
            break
        *path, last = data.draw(st.sampled_from(known))
        node = document
        for key in path:
            node = node[key]
        if data.draw(st.booleans()) and isinstance(node, dict):
            del node[last]
        else:
            node[last] = copy.deepcopy(data.draw(JUNK))
    for path in tmp_path.glob("*.json"):
        path.unlink()
    (tmp_path / NAMES.get(format, "a.json")).write_text(json.dumps(document))
    try:
        found = collect(tmp_path, format=data.draw(st.sampled_from([None, format])))
    except UserError:
        return
    with suppress(UserError):
        shutil.rmtree(tmp_path.parent / "out", ignore_errors=True)
        prepare(found, tmp_path, tmp_path.parent / "out")


LINES = {
    "a.csv": "a.png,1,2,3,4,cat\n",
    "b.csv": "ImageId,EncodedPixels\na.png,1 5 9 3\n",
    "c.csv": "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax\na,x,cat,1,0.1,0.2,0.3,0.4\n",
    "a.txt": "0 0.5 0.5 0.2 0.2\n",
    "k.txt": "Car 0.0 0 -1 4 4 6 6 -1 -1 -1 -1 -1 -1 -1\n",
    "data.yaml": "train: .\nnames:\n  0: cat\n",
    "voc.xml": VOC.format("a", BOX),
    "cvat.xml": '<annotations><image name="a.png" width="60" height="40">'
    '<mask label="cat" rle="1,2,1" left="1" top="1" '
    'width="2" height="2"/><polygon label="cat" points="1,1;9,1;9,9"/></image></annotations>',
}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(sorted(LINES)), st.sampled_from([None, *sorted(FORMATS)]))
def test_a_text_with_anything_in_a_place_is_never_a_crash(paint, tmp_path, data, name, format):
    paint("a.png")
    text = LINES[name]
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    text = text[:start] + data.draw(st.text(st.sampled_from("0159.,-;: \n<>/='\"a[]{}\0é"), max_size=6)) + text[end:]
    for path in (*tmp_path.glob("*.csv"), *tmp_path.glob("*.txt"), *tmp_path.glob("*.xml"), *tmp_path.glob("*.yaml")):
        path.unlink()
    (tmp_path / name).write_text(text)
    with suppress(UserError):
        collect(tmp_path, format=format)
