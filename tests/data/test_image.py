"""Every kind of file that Pillow reads becomes upright RGB, and every broken one a clear line."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.data.image import as_rgb, image_size, normalize, read_image
from mrcnn_cli.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
GREY = COLOURS[..., 0]
# What a viewer shows for each EXIF orientation of COLOURS.
UPRIGHT = {
    1: COLOURS,
    2: COLOURS[:, ::-1],
    3: COLOURS[::-1, ::-1],
    4: COLOURS[::-1],
    5: COLOURS.transpose(1, 0, 2),
    6: np.rot90(COLOURS, -1),
    7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
    8: np.rot90(COLOURS, 1),
}


def message(function, path) -> str:
    with pytest.raises(UserError) as caught:
        function(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def save(array: np.ndarray, path: Path, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "bmp", "ppm", "tiff", "webp"])
def test_colours_are_read_exactly(tmp_path, suffix):
    path = save(COLOURS, tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert np.array_equal(image, COLOURS)
    image[0, 0] = 0  # a person may draw on it


def test_grey_becomes_three_equal_channels(tmp_path):
    assert np.array_equal(read_image(save(GREY, tmp_path / "a.png")), repeated(GREY))


def test_black_and_white_becomes_0_and_255(tmp_path):
    path = save(GREY > 127, tmp_path / "a.png")
    with Image.open(path) as image:
        assert image.mode == "1"
    assert np.array_equal(read_image(path), repeated(np.where(GREY > 127, 255, 0)))


def test_transparency_is_dropped_and_the_colours_below_stay(tmp_path):
    alpha = np.where(GREY > 127, 0, GREY)[..., None].astype(np.uint8)
    assert np.array_equal(read_image(save(np.concatenate([COLOURS, alpha], 2), tmp_path / "rgba.png")), COLOURS)
    assert np.array_equal(
        read_image(save(np.concatenate([GREY[..., None], alpha], 2), tmp_path / "la.png")), repeated(GREY)
    )


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 250, 10))])
def test_a_palette_is_looked_up(tmp_path, transparency):
    path = tmp_path / "a.png"
    palette = np.random.default_rng(1).integers(0, 256, (25, 3), np.uint8)
    indices = GREY % 25
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    image.save(path, **({} if transparency is None else {"transparency": transparency}))
    assert np.array_equal(read_image(path), palette[indices])


def test_cmyk_becomes_rgb(tmp_path):
    flat = np.full((20, 30, 3), (200, 30, 90), np.uint8)
    image = read_image(save(flat, tmp_path / "a.jpg", "CMYK", quality=95))
    assert np.abs(image.astype(int) - flat).max() < 12


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_stay_sixteen_bits(tmp_path, suffix):
    deep = (GREY.astype(np.uint16) << 8) + COLOURS[..., 1]
    image = read_image(save(deep, tmp_path / f"a.{suffix}"))
    assert image.dtype == np.uint16
    assert np.array_equal(image, repeated(deep))


def test_big_endian_sixteen_bits_are_read_in_the_machines_order(tmp_path):
    deep = (GREY.astype(np.uint16) << 8) + COLOURS[..., 1]
    Image.frombytes("I;16B", (30, 20), deep.astype(">u2").tobytes()).save(tmp_path / "a.tiff")
    assert np.array_equal(read_image(tmp_path / "a.tiff"), repeated(deep))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_thirty_two_bits_become_floats(tmp_path, kind):
    deep = (GREY.astype(kind) - 100) * 1000
    image = read_image(save(deep, tmp_path / "a.tiff"))
    assert image.dtype == np.float32
    assert np.array_equal(image, repeated(deep.astype(np.float32)))


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert np.array_equal(read_image(tmp_path / "a.gif"), repeated(GREY))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_pictures_are_turned_upright_as_their_exif_data_says(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(COLOURS, tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    expected = UPRIGHT[orientation]
    image = read_image(path)
    assert image.shape == expected.shape
    if suffix != "jpg":
        assert np.array_equal(image, expected)
    assert image_size(path) == expected.shape[:2]
    assert image_size(path, upright=False) == (20, 30)


def test_a_deep_picture_is_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = GREY.astype(np.uint16) * 257
    path = save(deep, tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(path), repeated(np.rot90(deep, -1)))


def test_a_png_with_exif_data_behind_the_pixels_is_turned_too(tmp_path):
    path = save(COLOURS, tmp_path / "a.png")
    exif = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 6, 0)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    content = path.read_bytes()
    end = content.index(b"IEND") - 4
    path.write_bytes(content[:end] + chunk + content[end:])
    assert np.array_equal(read_image(path), UPRIGHT[6])
    assert image_size(path) == (30, 20)


@pytest.mark.parametrize("function", [read_image, image_size])
def test_a_missing_file_is_named(tmp_path, function):
    assert "no such image" in message(function, tmp_path / "a.png")


@pytest.mark.parametrize("function", [read_image, image_size])
def test_a_folder_is_no_image(tmp_path, function):
    assert "cannot be read" in message(function, tmp_path)


@pytest.mark.parametrize("function", [read_image, image_size])
def test_an_empty_file_is_called_empty(tmp_path, function):
    (tmp_path / "a.png").write_bytes(b"")
    assert "empty" in message(function, tmp_path / "a.png")


@pytest.mark.parametrize("function", [read_image, image_size])
def test_a_text_file_is_no_image(tmp_path, function):
    (tmp_path / "a.png").write_text("<html>404</html>" * 100)
    assert "not an image" in message(function, tmp_path / "a.png")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_cut_short_is_never_taken_for_a_picture(tmp_path, form, share):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (120, 160, 3), np.uint8)).save(content, form)
    path = tmp_path / "a"
    path.write_bytes(content.getvalue()[: int(len(content.getvalue()) * share)])
    assert "damaged or cut short" in message(read_image, path)


def test_damaged_bytes_give_a_picture_or_a_clear_line_but_no_other_error(tmp_path):
    generator = np.random.default_rng(3)
    path = tmp_path / "a"
    refused = 0
    for form in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"):
        content = io.BytesIO()
        Image.fromarray(COLOURS).save(content, form)
        for _ in range(40):
            damaged = bytearray(content.getvalue())
            for _ in range(4):
                damaged[generator.integers(0, min(len(damaged), 200))] = generator.integers(0, 256)
            path.write_bytes(damaged)
            for function in (read_image, image_size):
                try:
                    function(path)
                except UserError:
                    refused += 1
    assert refused > 50


def bomb(path: Path, width: int, height: int) -> Path:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (20_000, 10_000)])
@pytest.mark.parametrize("function", [read_image, image_size])
def test_a_few_bytes_that_claim_a_huge_picture_are_refused(tmp_path, function, width, height):
    assert "million pixels" in message(function, bomb(tmp_path / "a.png", width, height))


def test_a_large_picture_below_the_limit_is_none_of_our_business(tmp_path):
    assert image_size(bomb(tmp_path / "a.png", 12_000, 10_000)) == (10_000, 12_000)  # Pillow alone would warn


def test_without_normalization_bytes_stay_as_they_are():
    assert normalize(COLOURS, "none") is COLOURS


def test_without_normalization_deep_pixels_are_scaled_by_the_range_of_their_type():
    deep = np.array([0, 128, 129, 32768, 65535], np.uint16).reshape(1, 5, 1).repeat(3, 2)
    assert normalize(deep, "none")[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    floats = np.array([-1.0, 0.0, 1.0], np.float32).reshape(1, 3, 1).repeat(3, 2)
    assert normalize(floats, "none")[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, np.int32])
def test_percentiles_are_those_of_all_channels_together(kind):
    generator = np.random.default_rng(4)
    image = generator.gamma(2.0, 20.0, (50, 61, 3)).clip(0, 255).astype(kind)
    low, high = np.percentile(image, [1, 99.8])
    expected = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1) * 255
    result = normalize(image, "percentile")
    assert result.dtype == np.uint8
    assert np.abs(result - expected).max() <= 0.5 + 1e-6
    assert result.min() == 0
    assert result.max() == 255


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("mode", ["none", "percentile"])
def test_a_picture_of_one_value_is_no_division_by_zero(kind, mode):
    image = np.full((4, 5, 3), 200, kind)
    result = normalize(image, mode)
    assert result.dtype == np.uint8
    assert (
        result == (200 if mode == "none" and kind == np.uint8 else 1 if mode == "none" and kind == np.uint16 else 0)
    ).all()


def test_a_few_bright_pixels_on_black_are_seen():
    image = np.zeros((100, 100, 3), np.uint8)
    image[50, 50] = 9
    assert normalize(image, "percentile")[50, 50].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["none", "percentile"])
def test_pixels_that_are_not_finite_count_as_the_lowest(mode):
    image = np.linspace(1, 2, 300, dtype=np.float32).reshape(10, 10, 3)
    image[0, 0] = np.nan
    image[0, 1] = np.inf
    result = normalize(image, mode)
    assert (result[0, :2] == 0).all()
    assert result.max() == 255
    assert (normalize(np.full((2, 2, 3), np.nan, np.float32), mode) == 0).all()


def test_grey_and_transparency_are_given_where_they_are_wanted(tmp_path):
    path = save(COLOURS, tmp_path / "a.png")
    brightness = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_image(path, 1)[:, :, 0] - brightness).max() <= 0.51
    assert np.array_equal(read_image(path, 3), COLOURS)
    assert np.array_equal(read_image(save(GREY, tmp_path / "grey.png"), 1), GREY[:, :, None])
    deep = GREY.astype(np.uint16) * 257
    assert np.array_equal(read_image(save(deep, tmp_path / "deep.png"), 1), deep[:, :, None])
    clear = np.concatenate([COLOURS, GREY[:, :, None]], axis=2)
    assert np.array_equal(read_image(save(clear, tmp_path / "rgba.png"), 4), clear)
    assert np.array_equal(read_image(tmp_path / "rgba.png"), COLOURS)
    with pytest.raises(UserError, match=r"has 3 channels, but 4 are wanted \(data.channels\)"):
        read_image(path, 4)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_percentiles_of_each_channel_are_those_of_it_alone(kind, channels):
    generator = np.random.default_rng(4)
    image = (generator.gamma(2.0, 10.0, (50, 61, channels)) * np.arange(1, channels + 1)).clip(0, 255).astype(kind)
    result = normalize(image, "channel_percentile")
    assert result.dtype == np.uint8
    for channel in range(channels):
        assert np.array_equal(result[:, :, channel], normalize(image[:, :, [channel]], "percentile")[:, :, 0])
        assert result[:, :, channel].max() == 255


def test_raw_pixels_are_those_of_the_file():
    assert normalize(COLOURS, "raw") is COLOURS
    deep = np.array([0, 4095, 65535, 17], np.uint16).reshape(2, 1, 2)
    assert normalize(deep, "raw").dtype == np.float32
    assert np.array_equal(normalize(deep, "raw"), deep)
    floats = np.array([1.5, np.nan, -2.0, np.inf], np.float32).reshape(2, 1, 2)
    assert normalize(floats, "raw").ravel().tolist() == [1.5, -2.0, -2.0, -2.0]


def test_people_see_something_of_any_number_of_channels():
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 5), np.uint8)
    assert np.array_equal(as_rgb(image), image[:, :, :3])
    assert np.array_equal(as_rgb(image[:, :, :1]), image[:, :, :1].repeat(3, 2))
    two = as_rgb(image[:, :, :2])
    assert np.array_equal(two[:, :, :2], image[:, :, :2])
    assert not two[:, :, 2].any()
    deep = as_rgb(image.astype(np.uint16) * np.array([1, 10, 100, 1, 1], np.uint16))
    assert deep.dtype == np.uint8
    assert deep.reshape(-1, 3).max(0).tolist() == [255, 255, 255]
    assert as_rgb(COLOURS.astype(np.float32) - 1000).shape == COLOURS.shape
    assert as_rgb(COLOURS[:, ::-1]).flags.c_contiguous
