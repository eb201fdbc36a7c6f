"""What each format can say, read from sources made here."""

import base64
import io
import struct

import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.dataset_file import read_dataset_file
from mrcnn_cli.data.formats.collection import to_bitmap
from mrcnn_cli.data.formats.label_maps import components
from mrcnn_cli.data.formats.tfrecord import masked_checksum, parse_example
from mrcnn_cli.engine.prepare import collect, prepare

HEIGHT, WIDTH = 40, 60


def mask(y1, y2, x1, x2):
    found = np.zeros((HEIGHT, WIDTH), bool)
    found[y1:y2, x1:x2] = True
    return found


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def covers(instance, expected):
    return np.array_equal(to_bitmap(instance.segmentation, HEIGHT, WIDTH), expected)


def test_yolo_takes_classes_splits_and_polygons_from_data_yaml(paint, write, read, tmp_path):
    for name in ("train/a", "valid/b"):
        paint(f"{name.split('/')[0]}/images/{name.split('/')[1]}.png")
    write("data.yaml", "train: ../train/images\nval: ../valid/images  # set\n\nnc: 2\nnames: ['cat, big', \"dog\"]\n")
    write("train/labels/a.txt", "1 0.5 0.5 0.5 0.5\n")
    write("valid/labels/b.txt", "0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    found = read(tmp_path)
    assert found.reading.classes == ["cat, big", "dog"]
    assert [(picture.split, picture.instances[0].label) for picture in found.pictures] == [
        ("train", "dog"),
        ("val", "cat, big"),
    ]
    assert found.instances[0].box == (15, 10, 45, 30)
    assert found.instances[1].segmentation == [[6, 4, 30, 4, 30, 20, 6, 20]]


def test_yolo_finds_images_outside_of_the_folder_of_data_yaml(paint, write, read, tmp_path):
    paint("datasets/coco/images/train/a.png")
    write("datasets/coco/labels/train/a.txt", "0 0.5 0.5 0.5 0.5\n")
    path = write("cfg/data.yaml", "path: ../datasets/coco\ntrain: images/train\nnames: [cat]\n")
    found = read(path)
    assert (found.faults, len(found.instances)) == ([], 1)
    assert ".." not in str(found.pictures[0].path)


def test_yolo_without_a_label_file_is_background(paint, write, read, tmp_path):
    paint("images/a.png")
    paint("images/b.png")
    write("classes.txt", "cat\ndog\n")
    write("labels/a.txt", "1 0.5 0.5 0.5 0.5\n")
    found = read(tmp_path)
    assert [len(picture.instances) for picture in found.pictures] == [1, 0]
    assert found.notes[0].startswith("1 image without a label file taken as background")


def test_yolo_reads_keypoints_where_data_yaml_gives_their_shape(paint, write, read, tmp_path):
    paint("images/a.png")
    write("data.yaml", "train: images\nkpt_shape: [2, 3]\nnames:\n  0: person\n")
    write("labels/a.txt", "0 0.5 0.5 0.5 0.5 0.1 0.2 2 0 0 0\n")
    (one,) = read(tmp_path).instances
    assert one.keypoints == [6, 8, 2, 0, 0, 0]


def test_voc_reads_splits_masks_and_difficult_objects(paint, write, read, tmp_path):
    paint("JPEGImages/a.png")
    box = "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    objects = "".join(
        f"<object><name>cat</name><difficult>{difficult}</difficult>{box.format(*corners)}</object>"
        for difficult, corners in ((0, (1, 1, 10, 10)), (1, (21, 11, 40, 30)))
    )
    write("Annotations/a.xml", f"<annotation><filename>a.jpg</filename>{objects}</annotation>")
    write("ImageSets/Main/val.txt", "a\n")
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[0:10, 0:10], labels[10:30, 20:40], labels[5, 10] = 1, 2, 255
    picture = Image.fromarray(labels)
    picture.putpalette([0, 0, 0] * 256)  # VOC's own maps have a palette, whose colours say nothing
    (tmp_path / "SegmentationObject").mkdir()
    picture.save(tmp_path / "SegmentationObject" / "a.png")
    found = read(tmp_path, one_based=True, difficult="ignore")
    assert found.pictures[0].split == "val"
    assert [(one.box, one.crowd) for one in found.instances] == [((0, 0, 10, 10), False), ((20, 10, 40, 30), True)]
    assert covers(found.instances[0], mask(0, 10, 0, 10))
    assert covers(found.instances[1], mask(10, 30, 20, 40))
    dropped = read(tmp_path, difficult="drop")
    assert [one.box for one in dropped.instances] == [(1, 1, 10, 10)]
    assert dropped.notes[0].startswith("1 difficult object left out")


def test_labelme_reads_groups_circles_bitmaps_and_embedded_images(paint, write, read, tmp_path):
    image = paint("a.png").read_bytes()
    (tmp_path / "a.png").unlink()
    piece = base64.b64encode(png(np.ones((5, 4), np.uint8) * 255)).decode()
    shapes = [
        {"label": "cat", "points": [[1, 1], [9, 1], [9, 9]], "group_id": 3, "shape_type": "polygon"},
        {"label": "cat", "points": [[20, 1], [29, 1], [29, 9]], "group_id": 3, "shape_type": "polygon"},
        {"label": "dog", "points": [[30, 20], [35, 20]], "shape_type": "circle", "flags": {"old": True, "wet": False}},
        {"label": "dog", "points": [[50, 30], [53, 34]], "shape_type": "mask", "mask": piece},
        {"label": "dog", "points": [[4, 4]], "shape_type": "point"},
        {"label": "dog", "points": [[-3, 30], [0, 34]], "shape_type": "mask", "mask": piece},
    ]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": base64.b64encode(image).decode()}
    write("a.json", {"shapes": shapes, "imagePath": "..\\photos\\a.png", **size})
    found = read(tmp_path)
    cat, circle, bitmap = found.instances
    assert cat.segmentation == [[1, 1, 9, 1, 9, 9], [20, 1, 29, 1, 29, 9]]
    assert cat.box == (1, 1, 29, 9)
    assert circle.box == pytest.approx((25, 15, 35, 25), abs=0.01)
    assert circle.attributes == {"old": True}
    assert covers(bitmap, mask(30, 35, 50, 54))
    assert bitmap.box == (50, 30, 54, 35)
    assert found.notes[0].startswith("1 shape without an area (point) left out")
    assert found.pictures[0].embedded() == image
    assert found.faults == [f"{tmp_path}/a.json: shape 5 (dog): its mask begins outside of the image"]


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_via_reads_all_shapes_of_both_versions(paint, write, read, tmp_path, version, project):
    paint("a.png")
    regions = [
        {"shape_attributes": {"name": "rect", "x": 1, "y": 2, "width": 10, "height": 20}},
        {"shape_attributes": {"name": "circle", "cx": 30, "cy": 20, "r": 10}},
        {"shape_attributes": {"name": "ellipse", "cx": 30, "cy": 20, "rx": 10, "ry": 5}},
        {"shape_attributes": {"name": "polygon", "all_points_x": [1, 5, 5], "all_points_y": [1, 1, 5]}},
        {"shape_attributes": {"name": "point", "cx": 1, "cy": 1}},
    ]
    for region, kind in zip(regions, ("cat", {"cat": True}, "dog", "", "cat"), strict=True):
        region["region_attributes"] = {"colour": "red", "type": kind}
    entry = {"filename": "a.png", "size": 1, "file_attributes": {}, "regions": regions}
    if version == 1:
        entry["regions"] = {str(place): region for place, region in enumerate(regions)}
    content = {"a.png1": entry}
    write(
        "via.json", {"_via_settings": {}, "_via_img_metadata": content, "_via_attributes": {}} if project else content
    )
    found = read(tmp_path)
    assert [one.label for one in found.instances] == ["cat", "cat", "dog", "object"]
    assert [one.box for one in found.instances[::3]] == [(1, 2, 11, 22), (1, 1, 5, 5)]
    assert found.instances[1].box == pytest.approx((20, 10, 40, 30), abs=0.02)
    assert found.instances[2].box == pytest.approx((20, 15, 40, 25), abs=0.02)
    assert found.instances[0].attributes == {"colour": "red"}
    assert found.notes[0].startswith("1 region without an area (point) left out")
    assert {one.label for one in read(tmp_path, label_key="colour").instances} == {"red"}


def test_cvat_reads_bitmaps_groups_turned_boxes_and_labels(paint, write, read, tmp_path):
    paint("images/a.png")
    shapes = (
        '<mask label="cat" rle="1,2,1,3,1" left="10" top="5" width="4" height="2" occluded="1"/>'
        '<polygon label="dog" points="1,1;9,1;9,9" group_id="2"/>'
        '<polygon label="dog" points="20,1;29,1;29,9" group_id="2"/>'
        '<box label="dog" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90"/>'
        '<ellipse label="cat" cx="30" cy="20" rx="8" ry="4"/>'
    )
    labels = "<meta><job><labels><label><name>dog</name></label><label><name>cat</name></label></labels></job></meta>"
    write(
        "annotations.xml",
        f'<annotations>{labels}<image id="0" name="a.png" width="60" height="40">{shapes}</image></annotations>',
    )
    found = read(tmp_path)
    assert found.faults == []
    assert found.reading.classes == ["dog", "cat"]
    bitmap, group, turned, ellipse = found.instances
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:7, 10:14] = np.array([[0, 1, 1, 0], [1, 1, 1, 0]])
    assert covers(bitmap, expected)
    assert bitmap.attributes == {"occluded": True}
    assert len(group.segmentation) == 2
    assert turned.box == pytest.approx((15, 5, 25, 25))
    assert ellipse.box == pytest.approx((22, 16, 38, 24), abs=0.02)


@pytest.mark.parametrize(
    ("suffix", "dtype"), [("png", np.uint8), ("png", np.uint16), ("tif", np.uint16), ("tif", np.uint8)]
)
def test_label_maps_of_any_depth_are_read(paint, read, tmp_path, suffix, dtype):
    paint("images/a.png")
    labels = np.zeros((HEIGHT, WIDTH), dtype)
    high = np.iinfo(dtype).max
    labels[2:10, 3:20], labels[20:30, 3:20], labels[2:4, 40:50] = 1, high, high
    (tmp_path / "labels").mkdir()
    Image.fromarray(labels).save(tmp_path / "labels" / f"a.{suffix}")
    found = read(tmp_path, classes=("cell",))
    assert found.format == "label-maps"
    assert [one.label for one in found.instances] == ["cell", "cell"]
    assert covers(found.instances[0], labels == 1)
    assert covers(found.instances[1], labels == high)


def test_maps_of_classes_are_divided_into_their_regions(paint, read, tmp_path):
    paint("images/a.png")
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:10, 3:20], labels[20:30, 3:20], labels[2:4, 40:50] = 1, 1, 2
    (tmp_path / "masks").mkdir()
    Image.fromarray(labels).save(tmp_path / "masks" / "a_mask.png")
    found = read(tmp_path, classes=("cell", "dirt"), components=True)
    assert [(one.label, one.box) for one in found.instances] == [
        ("cell", (3, 2, 20, 10)),
        ("cell", (3, 20, 20, 30)),
        ("dirt", (40, 2, 50, 4)),
    ]


def test_connected_regions_equal_a_flood_fill():
    generator = np.random.default_rng(0)
    for _ in range(40):
        bitmap = generator.random(generator.integers(1, 15, 2)) < 0.6
        found, expected, count = components(bitmap), np.zeros(bitmap.shape, int), 0
        for x, y in ((x, y) for x in range(bitmap.shape[1]) for y in range(bitmap.shape[0])):
            if bitmap[y, x] and not expected[y, x]:
                count += 1
                todo = [(y, x)]
                while todo:
                    a, b = todo.pop()
                    inside = 0 <= a < bitmap.shape[0] and 0 <= b < bitmap.shape[1]
                    if inside and bitmap[a, b] and not expected[a, b]:
                        expected[a, b] = count
                        todo += [(a + 1, b), (a - 1, b), (a, b + 1), (a, b - 1)]
        assert np.array_equal(found, expected)


def test_a_mask_file_for_each_object_keeps_overlaps_and_names_faults(paint, write, read, tmp_path):
    paint("one/images/a.png")
    (tmp_path / "one" / "masks").mkdir()
    for name, region in (("x", (2, 10, 3, 20)), ("y", (5, 12, 10, 30)), ("z", (0, 0, 0, 0))):
        Image.fromarray(mask(*region).astype(np.uint8) * 255).save(tmp_path / "one" / "masks" / f"{name}.png")
    write("one/masks/broken.png", "no picture")
    found = read(tmp_path)
    assert covers(found.instances[0], mask(2, 10, 3, 20))
    assert covers(found.instances[1], mask(5, 12, 10, 30))
    assert [line.split(" (")[0] for line in found.notes] == [
        "1 mask file without a pixel left out",
        "1 image with masks that overlap kept as they are",
    ]
    assert len(found.faults) == 1
    assert "broken.png: is not an image" in found.faults[0]


def test_csv_of_boxes_has_negatives_and_a_class_map(paint, write, read, tmp_path):
    for name in "ab":
        paint(f"{name}.png")
    write("train.csv", "a.png,1,2,30,40,dog\na.png,5,6,7,8,cat\nb.png,,,,,\n")
    write("classes.csv", "dog,0\ncat,1\n")
    found = read(tmp_path)
    assert found.format == "csv"
    assert found.reading.classes == ["dog", "cat"]
    assert [(one.label, one.box) for one in found.instances] == [("dog", (1, 2, 30, 40)), ("cat", (5, 6, 7, 8))]
    assert [(picture.split, len(picture.instances)) for picture in found.pictures] == [("train", 2), ("train", 0)]


def test_the_text_of_keras_frcnn_is_the_same_in_a_text_file(paint, write, read, tmp_path):
    paint("photos/a.png")
    write("annotate.txt", "photos/a.png,1,2,30,40,dog\nphotos/a.png,5,6,7,8,cat\nphotos/a.png,5,6\n")
    found = read(tmp_path)
    assert found.format == "frcnn"
    assert [one.label for one in found.instances] == ["dog", "cat"]
    assert found.faults == [f"{tmp_path}/annotate.txt: line 3: has 3 fields instead of path,x1,y1,x2,y2,class"]


def test_run_lengths_of_kaggle_count_from_one_down_the_columns(paint, write, read, tmp_path):
    paint("a.png")
    paint("b.png")
    start = 3 * HEIGHT + 2 + 1  # column 3, row 2
    write("masks.csv", f"ImageId,EncodedPixels\na,{start} 5 {start + HEIGHT} 5\nb,\na,0 5\na,{HEIGHT * WIDTH} 2\n")
    found = read(tmp_path, classes=("nucleus",))
    (one,) = found.instances
    assert covers(one, mask(2, 7, 3, 5))
    assert (one.label, len(found.pictures)) == ("nucleus", 2)
    assert len(found.faults) == 2
    assert all("runs outside of its image" in line for line in found.faults)


def test_cityscapes_polygons_hide_what_lies_behind_them(paint, write, read, tmp_path):
    paint("leftImg8bit/train/ulm/ulm_1_2_leftImg8bit.png")
    square = lambda x: [[x, 10], [x + 20, 10], [x + 20, 30], [x, 30]]  # noqa: E731
    objects = [
        {"label": "sky", "polygon": [[0, 0], [60, 0], [60, 40], [0, 40]]},
        {"label": "car", "polygon": square(5)},
        {"label": "person", "polygon": square(15)},
        {"label": "cargroup", "polygon": square(38)},
        {"label": "caravan", "polygon": [[0, 0], [5, 0], [5, 5], [0, 5]]},
    ]
    write("gtFine/train/ulm/ulm_1_2_gtFine_polygons.json", {"imgHeight": 40, "imgWidth": 60, "objects": objects})
    found = read(tmp_path)
    car, person, group, caravan = found.instances
    assert covers(car, mask(10, 30, 5, 15))
    assert covers(person, mask(10, 30, 15, 35))
    assert (group.label, group.crowd) == ("car", True)
    assert (caravan.label, caravan.crowd) == (None, True)
    assert found.pictures[0].split == "train"


def test_lvis_finds_its_images_and_keeps_what_it_says_about_them(paint, write, collected, tmp_path):
    paint("train2017/a.png")
    image = {"id": 5, "coco_url": "http://images.example/train2017/a.png", "height": HEIGHT, "width": WIDTH}
    image |= {"neg_category_ids": [3], "not_exhaustive_category_ids": []}
    categories = [
        {"id": number, "name": name, "frequency": "r", "synset": f"{name}.n.01"}
        for number, name in ((2, "cat"), (3, "dog"))
    ]
    annotation = {
        "id": 9,
        "image_id": 5,
        "category_id": 2,
        "bbox": [1, 2, 8, 9],
        "segmentation": [[1, 2, 9, 2, 9, 11]],
        "area": 36,
    }
    write("lvis_v1_train.json", {"images": [image], "categories": categories, "annotations": [annotation]})
    found = collected(tmp_path)
    assert found.format == "lvis"
    (picture,) = found.collection.pictures
    assert picture.attributes["neg_category_ids"] == [3]
    assert (picture.split, picture.path.name) == ("train", "a.png")
    assert found.collection.categories["dog"] == {"id": 3, "frequency": "r", "synset": "dog.n.01"}


def varint(value):
    found = b""
    while True:
        value, low = value >> 7, value & 127
        found += bytes([low | (128 if value else 0)])
        if not value:
            return found


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values):
    if isinstance(values[0], bytes):
        return field(1, b"".join(field(1, value) for value in values))
    if isinstance(values[0], float):
        return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
    return field(3, field(1, b"".join(varint(value & (2**64 - 1)) for value in values)))


def example(**features):
    entries = (
        field(1, key.replace("__", "/").encode()) + field(2, feature(values)) for key, values in features.items()
    )
    return field(1, b"".join(field(1, entry) for entry in entries))


def record(data):
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_checksum(length)) + data + struct.pack("<I", masked_checksum(data))


@pytest.fixture
def tfrecord(paint, tmp_path):
    image = paint("a.png").read_bytes()
    (tmp_path / "a.png").unlink()
    box = {"xmin": [0.05, 0.5], "xmax": [0.3, 1.0], "ymin": [0.1, 0.0], "ymax": [0.25, 0.5]}
    data = example(
        image__encoded=[image],
        image__format=[b"png"],
        image__filename=[b"../../a.png"],
        image__height=[HEIGHT],
        image__width=[WIDTH],
        **{f"image__object__bbox__{key}": values for key, values in box.items()},
        image__object__class__text=[b"cat", b"dog"],
        image__object__class__label=[1, 2],
        image__object__is_crowd=[0, 1],
        image__object__mask=[png(mask(4, 10, 3, 18).astype(np.uint8)), png(mask(0, 20, 30, 60).astype(np.uint8))],
    )
    path = tmp_path / "train.record-00000-of-00001"
    path.write_bytes(record(data) * 2)
    (tmp_path / "map.pbtxt").write_text("item {\n  id: 2\n  name: 'dog'\n}\nitem { name: 'cat' id: 1 }\n")
    return path, image


def test_tfrecord_is_read_without_tensorflow(tfrecord, read, tmp_path):
    path, image = tfrecord
    found = read(tmp_path)
    assert (found.format, found.faults) == ("tfrecord", [])
    assert found.reading.classes == ["cat", "dog"]
    assert [picture.split for picture in found.pictures] == ["train", "train"]
    cat, dog = found.pictures[1].instances
    assert (cat.label, dog.label, cat.crowd, dog.crowd) == ("cat", "dog", False, True)
    assert cat.box == pytest.approx((3, 4, 18, 10), abs=1e-5)
    assert covers(cat, mask(4, 10, 3, 18))
    assert found.pictures[1].embedded() == image
    assert found.pictures[1].path == path.with_name("a.png")  # never outside of the folder


def test_pictures_inside_records_are_written_beside_the_annotations(tfrecord, tmp_path):
    _, image = tfrecord
    out = tmp_path.parent / f"{tmp_path.name}_prepared"
    prepare(collect(tmp_path), tmp_path, out, val=0.5)
    split = read_dataset_file(out).splits["train"]
    written = Dataset.read(split.images, split.annotations)
    assert split.images == out.resolve() / "train"
    assert [record.file_name for record in written.images] == ["a.png", "a_2.png"]
    assert written.images[0].path.read_bytes() == image
    assert written.read_image(0).shape == (HEIGHT, WIDTH, 3)
    assert written.has_masks


@pytest.mark.parametrize("keep", [0.3, 0.75])
def test_a_tfrecord_file_that_is_cut_short_is_named(tfrecord, read, tmp_path, keep):
    path, _ = tfrecord
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    found = read(tmp_path)
    assert found.format == "tfrecord"
    assert len(found.pictures) == int(2 * keep)
    assert found.faults == [f"{path}: is cut short in the record at byte {int(2 * keep) * len(data) // 2}"]


def test_the_checksum_is_the_published_one():
    # RFC 3720, B.4: CRC-32C of 32 zeros is 0x8a9136aa; TFRecord turns it by 15 bits and adds a constant.
    checksum = 0x8A9136AA
    assert masked_checksum(bytes(32)) == ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("data", [b"\x0a", b"\x0a\x05ab", b"\x0b", b"\xff" * 20])
def test_a_damaged_message_is_an_error_not_a_crash(data):
    with pytest.raises((ValueError, KeyError)):
        parse_example(data)
