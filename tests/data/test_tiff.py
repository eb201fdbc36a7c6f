"""TIFF files of any channels and depth, written by tifffile in every way that people write them."""

import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from mrcnn_cli.data.image import MAX_PIXELS, encode_image, image_size, read_image
from mrcnn_cli.data.tiff import encode_tiff, read_tiff
from mrcnn_cli.errors import UserError

KINDS = [np.uint8, np.uint16, np.float32]


def pixels(kind, channels: int) -> np.ndarray:
    generator = np.random.default_rng(channels)
    if kind == np.float32:
        return generator.normal(0, 1000, (20, 30, channels)).astype(kind)
    return generator.integers(0, np.iinfo(kind).max + 1, (20, 30, channels), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [2, 4, 5, 32])
@pytest.mark.parametrize("form", ["samples", "planes", "pages", "imagej", "ome"])
def test_every_way_to_store_channels_gives_the_same_picture(tmp_path, kind, channels, form):
    image = pixels(kind, channels)
    planes = np.moveaxis(image, 2, 0)
    path = tmp_path / "a.tif"
    if form == "samples":
        tifffile.imwrite(path, image, photometric="minisblack", planarconfig="contig")
    elif form == "planes":
        tifffile.imwrite(path, planes, photometric="minisblack", planarconfig="separate")
    elif form == "pages":
        tifffile.imwrite(path, planes, photometric="minisblack", compression="zlib")
    elif form == "imagej":
        tifffile.imwrite(path, planes, imagej=True, metadata={"axes": "CYX"})
    else:
        tifffile.imwrite(path, planes, ome=True, photometric="minisblack", metadata={"axes": "CYX"})
    read = read_image(path)
    assert read.dtype == kind
    assert np.array_equal(read, image)
    assert np.array_equal(read_image(path, channels), image)
    assert image_size(path) == (20, 30)


@pytest.mark.parametrize("kind", KINDS)
def test_one_channel_is_grey_in_three_or_alone(tmp_path, kind):
    image = pixels(kind, 1)
    tifffile.imwrite(tmp_path / "a.tif", image[:, :, 0])
    assert np.array_equal(read_image(tmp_path / "a.tif"), image.repeat(3, axis=2))
    assert np.array_equal(read_image(tmp_path / "a.tif", 1), image)


@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_deep_colours_stay_deep_and_have_a_brightness(tmp_path, kind):
    image = pixels(kind, 3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "a.tif"), image)
    grey = read_image(tmp_path / "a.tif", 1)
    assert grey.dtype == kind
    expected = image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[:, :, 0] - expected).max() <= (0.51 if kind == np.uint16 else 1e-3)


def test_a_fourth_sample_is_a_channel_unless_the_file_calls_it_transparency(tmp_path):
    image = pixels(np.uint8, 4)
    for kind, expected in (("unspecified", 4), ("unassalpha", 3)):
        tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=[kind])
        assert np.array_equal(read_image(tmp_path / "a.tif"), image[:, :, :expected])
        assert np.array_equal(read_image(tmp_path / "a.tif", 4), image)
    tifffile.imwrite(tmp_path / "a.tif", image.astype(np.uint16), photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(read_image(tmp_path / "a.tif"), image[:, :, :3])
    assert np.array_equal(read_image(tmp_path / "a.tif", 4), image)


@pytest.mark.parametrize("kind", [np.int16, np.uint32, np.float64, np.float16, np.int8])
def test_other_types_become_floats(tmp_path, kind):
    image = np.random.default_rng(0).integers(0, 100, (20, 30, 2)).astype(kind)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", planarconfig="contig")
    read = read_image(tmp_path / "a.tif")
    assert read.dtype == np.float32
    assert np.array_equal(read, image.astype(np.float32))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_channels_are_turned_upright_as_pillow_turns_colours(tmp_path, orientation):
    image = pixels(np.uint8, 5)
    tag = [(274, "H", 1, orientation, False)]
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack", planarconfig="contig", extratags=tag)
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(image[:, :, :3]).save(tmp_path / "b.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.tif")[:, :, :3], read_image(tmp_path / "b.png"))
    assert image_size(tmp_path / "a.tif") == image_size(tmp_path / "b.png")
    assert image_size(tmp_path / "a.tif", upright=False) == (20, 30)


def test_a_page_of_another_size_is_no_channel(tmp_path):
    image = pixels(np.uint8, 1)[:, :, 0]
    Image.fromarray(image).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(image[::2, ::2])])
    assert np.array_equal(read_image(tmp_path / "a.tif", 1)[:, :, 0], image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_what_is_encoded_is_read_again(tmp_path, kind, channels):
    image = pixels(kind, channels)
    (tmp_path / "a.tif").write_bytes(encode_tiff(image))
    assert np.array_equal(read_image(tmp_path / "a.tif", channels), image)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_a_picture_is_written_without_loss_as_png_where_that_can_hold_it(tmp_path, kind, channels):
    image = pixels(kind, channels)
    suffix, content = encode_image(image)
    assert suffix == (
        ".png" if (kind, channels) in {(np.uint8, 1), (np.uint8, 3), (np.uint8, 4), (np.uint16, 1)} else ".tif"
    )
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    read = read_image(path, channels)
    assert read.dtype == kind
    assert np.array_equal(read, image)


def refusal(path, channels=None) -> str:
    with pytest.raises(UserError) as caught:
        read_image(path, channels)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_stacks_over_depth_or_time_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((6, 4, 20, 30), np.uint16), imagej=True, metadata={"axes": "ZCYX"})
    assert "is a stack ZCYX of 6 x 4 x 20 x 30" in refusal(path)
    tifffile.imwrite(path, np.zeros((6, 20, 30), np.uint16), imagej=True, metadata={"axes": "TYX"})
    assert "is a stack TYX" in refusal(path)


def test_too_many_channels_and_pixels_are_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((33, 20, 30), np.uint8), photometric="minisblack")
    assert "holds 33 channels or pages" in refusal(path)
    tifffile.imwrite(path, np.zeros((2, 20, 30), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="million pixels"):
        read_tiff(path, most_pixels=599)
    assert read_tiff(path, most_pixels=600).shape == (20, 30, 2)
    assert MAX_PIXELS > 10**8


def test_another_number_of_channels_than_wanted_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(encode_tiff(pixels(np.uint8, 5)))
    assert "has 5 channels, but 4 are wanted (data.channels)" in refusal(path, 4)
    Image.fromarray(pixels(np.uint8, 3)).save(tmp_path / "a.png")
    assert "has 3 channels, but 5 are wanted" in refusal(tmp_path / "a.png", 5)


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "a.tif"
    content = encode_tiff(pixels(np.uint16, 5))
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        assert "damaged or cut short" in refusal(path)


def test_a_compression_that_needs_another_package_names_it(tmp_path, monkeypatch):
    def lacking(*_, **__):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")  # as tifffile says

    (tmp_path / "a.tif").write_bytes(encode_tiff(pixels(np.uint8, 5)))
    monkeypatch.setattr("mrcnn_cli.data.image.read_tiff", lacking)
    assert "its compression needs imagecodecs; run: pip install imagecodecs" in refusal(tmp_path / "a.tif")


def test_without_tifffile_ordinary_files_are_read_and_others_say_what_to_install(tmp_path, monkeypatch):
    image = pixels(np.uint8, 5)
    for channels in (3, 5):
        (tmp_path / f"{channels}.tif").write_bytes(encode_tiff(image[:, :, :channels]))
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert np.array_equal(read_image(tmp_path / "3.tif"), image[:, :, :3])
    assert "pip install 'mrcnn-cli[tiff]'" in refusal(tmp_path / "5.tif")
    with pytest.raises(UserError, match="tifffile"):
        image_size(tmp_path / "5.tif")
