"""The page that shows a data set: what is written, and in a real browser what a person can do with it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mrcnn_cli.errors import UserError
from mrcnn_cli.views.gallery import Exhibit, Shape, encoded, svg_path, write_gallery
from mrcnn_cli.views.skeleton import Skeleton
from tests.views.browser import CHROMIUM, DRIVER, Browser

CLASSES = ["cell", 'odd </script><b>"name"']
FAULTS = {"box-outside": "error", "image-empty": "note"}


def exhibits(count=5, **more):
    """Pictures of 40 x 60 pixels: the first with an object of each class, the others with one, the last with none."""
    random = np.random.default_rng(0)
    made = []
    for number in range(count):
        jpeg = encoded(np.full((40, 60, 3), random.integers(0, 256, 3), np.uint8))
        objects = [Shape(0, (5, 5, 25, 25), "M5 5h20v20h-20z", f"annotation {number}")]
        faults = []
        if number == 0:
            objects.append(Shape(1, (0, 0, 59, 39), "", "big", faults=("box-outside: far <i>away</i>",)))
            faults = [("box-outside", "far <i>away</i>")]
        if number == count - 1:
            objects, faults = [], [("image-empty", "has no objects")]
        made.append(Exhibit(jpeg, 40, 60, f"picture-{number}.png", number % 2, objects, faults=faults, **more))
    return made


def write(path, made, **more):
    shared = {"title": "cells <1>", "about": "some", "splits": ["train", "val"], "classes": CLASSES, "faults": FAULTS}
    return write_gallery(path, made, **(shared | more))


def blocks(path):
    """id -> content of the page's blocks of JSON, as a browser's parser finds them."""
    found = {}

    class Parser(HTMLParser):
        name = None

        def handle_starttag(self, tag, attributes):
            values = dict(attributes)
            self.name = values.get("id") if values.get("type") == "application/json" else None

        def handle_data(self, data):
            if self.name:
                found[self.name] = json.loads(data)
                self.name = None

    parser = Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    return found


def test_every_picture_is_in_the_page_with_its_shapes(tmp_path):
    size = write(tmp_path / "a.html", exhibits())
    assert size == (tmp_path / "a.html").stat().st_size
    found = blocks(tmp_path / "a.html")
    assert set(found) == {"index", *(f"image-{number}" for number in range(5))}
    first = found["image-0"]
    assert first["size"] == [40, 60]
    assert first["objects"][0][2:8] == [5, 5, 20, 20, "M5 5h20v20h-20z", "annotation 0"]
    jpeg = base64.b64decode(first["image"].removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.size == (60, 40)
    assert found["index"]["images"][0] == ["picture-0.png", 0, [0, 1], [20, 48], ["box-outside"], None, None]


def test_names_cannot_break_out_of_their_block(tmp_path):
    write(tmp_path / "a.html", exhibits())
    text = (tmp_path / "a.html").read_text()
    assert "<b>" not in re.sub(r"<b>\s", "", text)
    assert blocks(tmp_path / "a.html")["index"]["classes"] == CLASSES


def test_the_page_names_no_address(tmp_path):
    write(tmp_path / "a.html", exhibits())
    text = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", (tmp_path / "a.html").read_text())
    assert set(re.findall(r"\w+://[\w./-]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, never asked for
    assert "default-src 'none'" in text


def test_a_page_is_whole_or_absent(tmp_path):
    def failing():
        yield from exhibits(2)
        raise KeyboardInterrupt

    (tmp_path / "a.html").write_text("before")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.html", failing())
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
    assert (tmp_path / "a.html").read_text() == "before"
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "missing" / "a.html", exhibits())


def points_of(path):
    """The corners of a path that `svg_path` wrote."""
    rings, x, y = [], 0.0, 0.0
    for letter, numbers in re.findall(r"([Mhvlz])([^Mhvlz]*)", path):
        values = [float(number) for number in numbers.split()]
        if letter == "M":
            x, y = values
            rings.append([])
        elif letter == "z":
            continue
        else:
            dx, dy = {"h": (*values, 0), "v": (0, *values)}.get(letter, tuple(values))
            x, y = x + dx, y + dy
        rings[-1].append([x, y])
    return rings


def test_a_path_leads_through_the_corners_without_drifting():
    random = np.random.default_rng(0)
    rings = [random.uniform(-50, 2000, (300, 2)) for _ in range(3)]
    for ring, found in zip(rings, points_of(svg_path(rings)), strict=True):
        assert np.abs(ring - np.array(found)).max() <= 0.05 + 1e-9


def test_a_path_of_whole_pixels_is_short():
    assert svg_path([np.array([[0, 0], [5, 0], [5, 3], [0, 3]])]) == "M0 0h5v3h-5z"
    assert svg_path([np.array([[0.25, -0.5], [1.0, 2.0]])], digits=2) == "M0.25 -0.5l0.75 2.5z"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium with its driver is installed (Debian: chromium, chromium-driver)")
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


def cards(browser):
    return browser.run("return [...document.querySelectorAll('.card .file')].map(x => x.textContent)")


def opened(browser, path, made, **more):
    write(path, made, **more)
    browser.open(path)
    browser.wait("return document.querySelector('.frame svg')")


def quiet(browser):
    """No complaint of the browser, and nothing asked for but the page itself."""
    assert browser.complaints() == []
    asked = [address for address in browser.requests() if not address.startswith(("data:", "file:", "chrome:"))]
    assert asked == []


RIGHT, LEFT, ESCAPE, ENTER = "\ue014", "\ue012", "\ue00c", "\ue007"  # WebDriver's names of the keys


@pytest.mark.slow
def test_a_browser_shows_the_pictures_with_their_masks_and_asks_the_network_for_nothing(browser, tmp_path):
    opened(browser, tmp_path / "a.html", exhibits())
    assert browser.text("h1") == "cells <1>"
    assert browser.text("#count") == "5 pictures, 5 objects"
    assert len(cards(browser)) == 5
    assert browser.count('.card:first-child path.shape[d="M5 5h20v20h-20z"]') == 1
    assert browser.run("return document.querySelector('.card img').naturalWidth") == 60
    # The overlay lies on the picture: a mask's corner is where that pixel is.
    places = browser.run(
        "const mask = document.querySelector('.card path.shape').getBoundingClientRect();"
        "const frame = document.querySelector('.card .frame').getBoundingClientRect();"
        "const scale = Math.min(frame.width / 60, frame.height / 40);"
        "return [(mask.left - frame.left - (frame.width - 60 * scale) / 2) / scale, mask.width / scale]"
    )
    assert places == pytest.approx([5, 20], abs=0.7)
    quiet(browser)


@pytest.mark.slow
def test_a_browser_filters_by_name_split_class_size_and_fault(browser, tmp_path):
    opened(browser, tmp_path / "a.html", exhibits())
    browser.type("#name", "3")
    assert cards(browser) == ["picture-3.png"]
    browser.click("button[type=reset]")
    browser.wait("return document.querySelectorAll('.card').length === 5")
    for selector, value, names in (
        ("#split", "1", [1, 3]),
        ("#class", "1", [0]),
        ("#size", "medium", [0]),
        ("#fault", "image-empty", [4]),
        ("#fault", "any", [0, 4]),
    ):
        browser.choose(selector, value)
        assert cards(browser) == [f"picture-{number}.png" for number in names], (selector, value)
        browser.choose(selector, "")
    browser.choose("#class", "0")
    browser.choose("#size", "medium")  # the large one in the first picture is of the other class
    assert cards(browser) == []
    assert browser.text("#count") == "No picture fits these filters."
    browser.click("button[type=reset]")
    browser.wait("return document.querySelectorAll('.card').length === 5")
    browser.choose("#order", "most objects first")
    assert cards(browser)[0] == "picture-0.png"
    quiet(browser)


@pytest.mark.slow
def test_a_browser_opens_a_picture_with_its_objects_and_faults_and_zooms(browser, tmp_path):
    opened(browser, tmp_path / "a.html", exhibits())
    browser.click(".card")
    assert browser.text("#viewer-name") == "picture-0.png"
    assert browser.text("#list-title") == "2 objects"
    assert browser.text("#viewer-faults li") == "box-outside\nfar <i>away</i>"
    assert browser.count("#list button") == 2
    assert 'odd </script><b>"name"' in browser.text("#list li:nth-child(2) button")
    box = "return document.getElementById('left').getAttribute('viewBox').split(' ').map(Number)"
    assert browser.run(box) == [0, 0, 60, 40]
    browser.click("#list button")
    x, y, width, height = browser.run(box)
    assert (x + width / 2, y + height / 2) == pytest.approx((15, 15))
    assert width < 60
    assert browser.count("#left .object.chosen") == 1
    browser.press("0")
    browser.wheel("#left", -400)
    x, _, width, _ = browser.run(box)
    assert width < 60
    browser.drag("#left", 100, 0)
    assert browser.run(box)[0] < x  # to the right goes the picture
    browser.click("#zoom-all")
    assert browser.run(box) == [0, 0, 60, 40]
    browser.press(ESCAPE)
    assert not browser.run("return document.getElementById('viewer').open")
    quiet(browser)


@pytest.mark.slow
def test_a_browser_is_led_by_the_keyboard_alone(browser, tmp_path):
    opened(browser, tmp_path / "a.html", exhibits())
    focused = "return document.activeElement.querySelector('.file')?.textContent"
    browser.press(RIGHT)
    assert browser.run(focused) == "picture-0.png"
    browser.press(RIGHT, RIGHT, LEFT)
    assert browser.run(focused) == "picture-1.png"
    browser.press(ENTER)
    assert browser.text("#viewer-name") == "picture-1.png"
    browser.press(RIGHT)
    assert browser.text("#viewer-name") == "picture-2.png"
    browser.press("j")
    assert browser.count('#list button[aria-current="true"]') == 1
    shown = "return getComputedStyle(document.querySelector('#left .shape')).display !== 'none'"
    assert browser.run(shown)
    browser.press("m")
    assert not browser.run(shown)
    browser.press(ESCAPE)
    browser.wait(f"{focused} === 'picture-2.png'")  # where one was
    theme = "return getComputedStyle(document.body).backgroundColor"
    before = browser.run(theme)
    browser.press("d")
    assert browser.run(theme) != before
    browser.press("/")
    browser.type("#name", "m")  # a letter, not the switch
    assert browser.run("return document.querySelector('[data-switch=masks]').getAttribute('aria-pressed')") == "false"
    quiet(browser)


@pytest.mark.slow
def test_a_browser_shows_predictions_beside_the_truth(browser, tmp_path):
    truth = [Shape(0, (5, 5, 25, 25), name="annotation 1"), Shape(0, (30, 5, 50, 25), name="annotation 2", missed=True)]
    found = [Shape(0, (6, 5, 26, 25), score=0.9), Shape(1, (5, 30, 15, 38), score=0.6, missed=True)]
    jpeg = encoded(np.zeros((40, 60, 3), np.uint8))
    made = [Exhibit(jpeg, 40, 60, "a.png", 0, truth, found), Exhibit(jpeg, 40, 60, "b.png", 0, [], [])]
    opened(browser, tmp_path / "a.html", made, splits=["val"])
    assert browser.text(".card:first-child .facts") == "2 objects\n1 missed\n1 false"
    browser.choose("#found", "wrong")
    assert cards(browser) == ["a.png"]
    browser.click(".card")
    assert browser.count("#left .object") == 2
    assert browser.count("#right .object") == 2
    assert browser.count("#left .missed") == browser.count("#right .missed") == 1
    assert browser.text("#list li:nth-child(4)").splitlines()[0].endswith("0.60")
    browser.press("p")
    assert not browser.run("return document.getElementById('right').checkVisibility()")
    browser.press("p", "t")
    assert not browser.run("return document.getElementById('left').checkVisibility()")
    quiet(browser)


@pytest.mark.slow
def test_a_browser_shows_keypoints_with_their_lines_and_names(browser, tmp_path):
    marked = Shape(0, (5, 5, 45, 35), keypoints=[(10, 10), (40, 30), None])
    jpeg = encoded(np.zeros((40, 60, 3), np.uint8))
    made = [Exhibit(jpeg, 40, 60, "a.png", 0, [marked, Shape(0, (1, 1, 9, 9))])]
    opened(browser, tmp_path / "a.html", made, skeleton=Skeleton(["snout", "tail", "ear"], [(0, 1), (1, 2)]))
    assert browser.count(".card .dot") == 2
    assert browser.count('.card path.bones:not(.rim)[d="M10 10L40 30"]') == 1
    assert browser.run("return document.querySelector('.dot:last-child title').textContent") == "tail"
    visible = "return getComputedStyle(document.querySelector('.card .dot')).display"
    assert browser.run(visible) != "none"
    browser.press("s")
    assert browser.run(visible) == "none"
    opened(browser, tmp_path / "b.html", exhibits())
    assert browser.run("return document.querySelector('[data-switch=keypoints]').hidden")
    quiet(browser)


@pytest.mark.slow
def test_a_browser_pages_through_ten_thousand_pictures(browser, tmp_path):
    jpeg = encoded(np.zeros((40, 60, 3), np.uint8))
    shape = Shape(0, (5, 5, 25, 25), "M5 5h20v20h-20z")
    made = (Exhibit(jpeg, 40, 60, f"{number}.png", number % 2, [shape]) for number in range(10_000))
    opened(browser, tmp_path / "a.html", made)
    assert browser.text("#count") == "10,000 pictures, 10,000 objects"
    assert len(cards(browser)) == 100
    assert browser.text("#pages") == "100"
    browser.click("#next")
    assert cards(browser)[0] == "100.png"
    browser.run("document.getElementById('page').select()")
    browser.type("#page", "100" + ENTER)
    assert cards(browser)[-1] == "9999.png"
    assert browser.run("return document.getElementById('next').disabled")
    # Only what is near the window is drawn.
    browser.wait("return document.querySelectorAll('.card svg').length > 0")
    assert browser.count(".card svg") < 100
    browser.choose("#split", "1")
    browser.click(".card:nth-child(100)")
    browser.press(RIGHT)  # the first of the next page
    assert browser.text("#viewer-name") == "201.png"
    quiet(browser)


@pytest.mark.slow
def test_every_control_of_the_page_has_a_name_and_texts_stand_out(browser, tmp_path):
    opened(browser, tmp_path / "a.html", exhibits())
    browser.click(".card")
    nameless = browser.run(
        "return [...document.querySelectorAll('button, input, select')].filter(x => x.checkVisibility()"
        " && !(x.textContent.trim() || x.getAttribute('aria-label') || x.closest('label'))).map(x => x.outerHTML)"
    )
    assert nameless == []
    for scheme in ("light", "dark"):
        browser.run("document.documentElement.dataset.theme = arguments[0]", scheme)
        faint = browser.run(CONTRAST)
        assert faint == []


# Texts whose contrast with their background is below WCAG's 4.5.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (colour, below) => {
  canvas.fillStyle = below; canvas.fillRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = (colour) => colour.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const behind = (x) => {
  const chain = [];
  for (let at = x; at; at = at.parentElement) chain.unshift(getComputedStyle(at).backgroundColor);
  return chain.reduce((below, colour) => `rgb(${rgb(colour, below).join()})`, "rgb(255,255,255)");
};
for (const x of document.querySelectorAll("*")) x.style.transition = "none";
const written = (x) => x.checkVisibility() && !x.disabled && !x.closest("svg, figure")
  && [...x.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
return [...document.querySelectorAll("header *, main *, dialog *")].filter(written).map((x) => {
  const ground = behind(x), both = [rgb(getComputedStyle(x).color, ground), rgb(ground, "#fff")].map(light);
  const [low, high] = both.sort((a, b) => a - b);
  return [x.id || x.className || x.tagName, (high + .05) / (low + .05)];
}).filter(([, ratio]) => ratio < 4.5);
"""
