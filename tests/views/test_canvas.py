"""Text that the font can spell, and picture files that are whole or absent."""

import os

import pytest
from PIL import Image

from mrcnn_cli.errors import UserError
from mrcnn_cli.views import canvas


def test_the_font_grows_with_its_size():
    assert canvas.font(30).getlength("nucleus") > 1.8 * canvas.font(15).getlength("nucleus")


@pytest.mark.parametrize(
    ("text", "spelled"),
    [("cell 0.97", "cell 0.97"), ("Zellkörper", "Zellkorper"), ("細胞 a", "?? a"), ("ｆｉｎ", "fin")],
)
def test_letters_that_the_font_lacks_are_replaced(text, spelled):
    assert canvas.spell(text) == spelled


def test_text_is_cut_to_its_room():
    face = canvas.font(20)
    assert canvas.fit("short", face, 500) == "short"
    cut = canvas.fit("a rather long name of a class", face, 120)
    assert cut.endswith("…")
    assert face.getlength(cut) <= 120
    assert canvas.fit("wide", face, 1) == "…"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_a_saved_picture_is_read_back_and_nothing_else_is_left(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(b"an older picture")
    canvas.save(Image.new("RGB", (20, 10), (250, 20, 20)), path)
    with Image.open(path) as picture:
        assert picture.size == (20, 10)
    assert os.listdir(tmp_path) == [path.name]


def test_a_failed_save_leaves_the_older_picture_and_no_other_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    canvas.save(Image.new("RGB", (4, 4)), path)
    before = path.read_bytes()

    def full(self, file, **options):
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        canvas.save(Image.new("RGB", (4, 4), (255, 255, 255)), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["picture.png"]


def test_an_interrupted_save_leaves_no_file(tmp_path, monkeypatch):
    def interrupted(self, file, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        canvas.save(Image.new("RGB", (4, 4)), tmp_path / "picture.png")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"), [("absent/a.png", "No such file"), ("a.doc", ".png or .jpg"), ("a", ".png")]
)
def test_a_place_that_cannot_hold_a_picture_is_a_mistake_of_the_user(tmp_path, name, words):
    with pytest.raises(UserError, match=words):
        canvas.save(Image.new("RGB", (4, 4)), tmp_path / name)
