"""The page in a real headless Chromium, against what Pillow and native ONNX Runtime say."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from chromium import Page
from page_server import Served, serving, with_package
from PIL import Image

from edgecnn import images
from edgecnn.bundle import Bundle
from edgecnn.predict import Predictor
from edgecnn.serving import page as served_page
from edgecnn.serving.app import make_app
from edgecnn.serving.limits import Limits
from edgecnn.spec import BackendRef, Preprocess

pytestmark = pytest.mark.slow

READY = "!document.querySelector('#main').hidden"
DONE = "document.querySelector('#answers').getAttribute('aria-busy') === 'false'"
ANSWERED = f"{DONE} && document.querySelector('.answer') !== null"
FAILED = f"{DONE} && !document.querySelector('#problem').hidden && document.querySelector('#problem').textContent"
SHOWN = """[...document.querySelectorAll('.answer')].map((card) => ({
  where: card.querySelector('h3').textContent, what: card.querySelector('.note').textContent,
  label: card.querySelector('.label').firstChild.textContent.trim(),
  percent: card.querySelector('.label small').textContent,
  bars: [...card.querySelectorAll('.bars li')].map((bar) => [bar.querySelector('.of').textContent, bar.querySelector('.bar').style.width]),
  times: [...card.querySelectorAll('.times tr')].map((row) => [row.cells[0].textContent, Number(row.cells[1].textContent)]),
}))"""
AGREEMENT = "document.querySelector('#agreement').textContent"
SEEN = """(() => {
  const { width, height } = document.querySelector('#seen-pixels');
  return [...document.querySelector('#seen-pixels').getContext('2d').getImageData(0, 0, width, height).data];
})()"""


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


@pytest.fixture(scope="module")
def server(bundle: Bundle) -> Iterator[Served]:
    with serving(make_app(bundle)) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with with_package("chromium"):
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        with Page(path) as opened:
            opened.view(1100, 800)
            yield opened


@pytest.fixture
def page(browser: Page, server: Served) -> Page:
    return fresh(browser, server)


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Iterator[Predictor]:
    with Predictor(bundle) as opened:
        yield opened


@pytest.fixture
def golden(bundle: Bundle) -> Path:
    return bundle.root / bundle.manifest.goldens.images[0]


def fresh(browser: Page, server: Served) -> Page:
    """Load a server's page anew, and forget what the browser has logged."""
    browser.open("about:blank")
    browser.console.clear()
    browser.open(server.url)
    return browser


def tick(page: Page, name: str, value: str) -> None:
    page.run(f"document.querySelector('input[name={name}][value={value}]').click()")


def shown(page: Page) -> list[dict[str, Any]]:
    page.wait(ANSWERED)
    found: list[dict[str, Any]] = page.run(SHOWN)
    return found


def percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def seen(page: Page, preprocess: Preprocess) -> images.Pixels:
    """Read the net's input (H, W, C) off the page."""
    rgba = np.array(page.run(SEEN), np.uint8).reshape(preprocess.height, preprocess.width, 4)
    assert (rgba[..., 3] == 255).all()
    return rgba[..., : preprocess.channels]


def check_card(card: dict[str, Any], pixels: images.Pixels, predictor: Predictor, within: float = 0.0) -> None:
    """Compare what is shown with what native ONNX Runtime makes of the same pixels."""
    probabilities = predictor.probabilities(pixels[None])[0]
    label, top = predictor.rank(probabilities, 5)
    assert (card["label"], [name for name, _ in card["bars"]]) == (label, [guess.label for guess in top])
    assert float(card["percent"].removesuffix(" %")) == pytest.approx(100 * top[0].probability, abs=0.05 + within)
    for (_, width), guess in zip(card["bars"], top, strict=True):
        assert float(width.removesuffix("%")) == pytest.approx(100 * guess.probability, abs=1e-3 + within)


def test_an_image_is_answered_by_the_server(page: Page, golden: Path, predictor: Predictor) -> None:
    """A chosen file is answered as by native ONNX Runtime, with bars, four times and the pixels that the net sees."""
    preprocess = predictor.bundle.manifest.preprocess
    page.wait(READY)
    page.choose("#file", golden)
    (card,) = shown(page)
    pixels = images.load(golden, preprocess)
    check_card(card, pixels, predictor)
    np.testing.assert_array_equal(seen(page, preprocess), pixels)
    assert card["where"] == "Server"
    assert [name for name, _ in card["times"]] == ["decode", "preprocess", "inference", "round trip"]
    assert card["times"][-1][1] > card["times"][2][1]
    assert golden.name in page.run("document.querySelector('#file-name').textContent")
    assert page.run("document.querySelector('#status').textContent").startswith(f"Server: {card['label']}, ")
    assert page.console == []


def test_both_sides_answer_and_agree(page: Page, tmp_path: Path, predictor: Predictor) -> None:
    """A dropped photograph, far from the net's size, gives both sides the same pixels and very nearly the same numbers."""
    ramp = np.linspace(0, 255, 301 * 203).reshape(203, 301)
    image = np.stack([ramp, ramp[::-1], np.roll(ramp, 77)], axis=-1).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "photo.jpg", quality=80)
    page.wait(READY)
    tick(page, "place", "both")
    page.drop("#drop", tmp_path / "photo.jpg")
    server, here = shown(page)
    pixels = images.load(tmp_path / "photo.jpg", predictor.bundle.manifest.preprocess)
    check_card(server, pixels, predictor)
    check_card(here, pixels, predictor, within=0.01)
    assert (server["where"], here["where"]) == ("Server", "This browser")
    artifact = predictor.bundle.manifest.default_artifact
    assert (server["what"], here["what"]) == (f"{artifact} on onnxruntime", f"{artifact} on onnxruntime-web")
    assert [name for name, _ in here["times"]] == ["decode", "preprocess", "inference", "total"]
    text = page.run(AGREEMENT)
    assert text.startswith(f"They agree: {server['label']}. ")
    assert text.endswith(("Both had the same pixels.", "Every probability is the same to the bit."))
    assert page.run("document.querySelector('#agreement').className") == "yes"
    assert page.console == []


def test_the_browser_alone_needs_no_server(browser: Page, bundle: Bundle, golden: Path, predictor: Predictor) -> None:
    """Once the model is loaded the browser answers in fp32 with the server gone, as native fp32 does."""
    with serving(make_app(bundle)) as served:
        page = fresh(browser, served)
        page.wait(READY)
        page.run("document.querySelector('#artifact').value = 'fp32'")
        tick(page, "place", "browser")
        page.choose("#file", golden)
        page.wait(ANSWERED)
        served.stop()
        page.choose("#file", bundle.root / bundle.manifest.goldens.images[1])
        page.wait(f"{DONE} && document.querySelector('#file-name').textContent.startsWith('001')")
        (card,) = shown(page)
    assert card["what"] == "fp32 on onnxruntime-web"
    pixels = images.load(bundle.root / bundle.manifest.goldens.images[1], bundle.manifest.preprocess)
    with Predictor(bundle, BackendRef(backend="onnxruntime", artifact="fp32")) as floats:
        check_card(card, pixels, floats, within=0.01)
    assert page.console == []


def test_another_decoder_is_named(page: Page, tmp_path: Path) -> None:
    """Of 16 bit grey, which browsers cut to the high byte and edgecnn rounds, the page says that the decoders differ."""
    values = np.random.default_rng(5).integers(0, 65536, (8, 8), dtype=np.uint16) // 256 * 256 + 255
    Image.fromarray(values).save(tmp_path / "deep.png")
    page.wait(READY)
    tick(page, "place", "both")
    page.choose("#file", tmp_path / "deep.png")
    shown(page)
    assert "They decode the image differently: on this browser's pixels" in page.run(AGREEMENT)


def test_a_pasted_image_is_answered(page: Page, golden: Path, predictor: Predictor) -> None:
    """An image on the clipboard is answered like a chosen file."""
    page.wait(READY)
    data = base64.b64encode(golden.read_bytes()).decode()
    page.run(
        f"(() => {{ const data = new DataTransfer(); data.items.add(new File([Uint8Array.from(atob('{data}'), (c) => c.charCodeAt(0))],"
        " 'pasted.png', { type: 'image/png' })); document.body.dispatchEvent(new ClipboardEvent('paste',"
        " { clipboardData: data, bubbles: true })); })()"
    )
    (card,) = shown(page)
    check_card(card, images.load(golden, predictor.bundle.manifest.preprocess), predictor)


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_a_drawing_is_answered(page: Page, predictor: Predictor, touch: bool) -> None:
    """A stroke down the middle, by mouse or finger, is light on dark in the net's input, which both sides answer for alike."""
    preprocess = predictor.bundle.manifest.preprocess
    page.wait(READY)
    tick(page, "source", "draw")
    tick(page, "place", "both")
    x, y = page.center("#paper")
    page.stroke([(x, y - 100), (x, y), (x, y + 100)], touch)
    server, here = shown(page)
    pixels = seen(page, preprocess)
    assert pixels[1:-1, preprocess.width // 2].min() > 100
    assert pixels[:, [0, -1]].max() == 0
    check_card(server, pixels, predictor)
    check_card(here, pixels, predictor, within=0.01)
    assert page.run(AGREEMENT).startswith(f"They agree: {server['label']}.")
    page.click("#clear")
    page.wait(f"{DONE} && document.querySelector('.answer') === null")
    assert page.console == []


def test_a_drawing_can_be_turned_round_and_centred(page: Page, predictor: Predictor) -> None:
    """Dark strokes on a light ground are asked for by a switch; a drawing in a corner is centred, unless that is switched off."""
    preprocess = predictor.bundle.manifest.preprocess
    page.wait(READY)
    tick(page, "source", "draw")
    page.run("document.querySelector('#center').click()")
    x, y = page.center("#paper")
    page.stroke([(x - 110, y - 110), (x - 60, y - 60)])
    page.wait(ANSWERED)
    light = seen(page, preprocess)
    assert light[:3, :3].max() > 200
    assert light[4:].max() == 0
    page.run("document.querySelector('#dark').click()")
    page.wait(
        f"{DONE} && document.querySelector('#seen-pixels').getContext('2d').getImageData(7, 7, 1, 1).data[0] === 255"
    )
    assert np.abs(seen(page, preprocess).astype(int) - (255 - light)).max() <= 1
    page.run("document.querySelector('#dark').click(); document.querySelector('#center').click()")
    page.wait(f"{DONE} && document.querySelector('#seen-pixels').getContext('2d').getImageData(4, 4, 1, 1).data[0] > 0")
    weights = seen(page, preprocess)[..., 0].astype(float)
    middle = np.arange(8) + 0.5
    assert (weights.sum(0) * middle).sum() / weights.sum() == pytest.approx(4, abs=0.1)
    assert (weights.sum(1) * middle).sum() / weights.sum() == pytest.approx(4, abs=0.1)


def test_a_small_drawing_is_made_as_large_as_the_goldens_are(page: Page, predictor: Predictor) -> None:
    """Digits that fill their images are what this net knows, so a short stroke reaches from edge to edge of what it sees."""
    preprocess = predictor.bundle.manifest.preprocess
    page.wait(READY)
    tick(page, "source", "draw")
    x, y = page.center("#paper")
    page.stroke([(x - 60, y), (x - 60, y + 60)])
    page.wait(ANSWERED)
    rows = np.flatnonzero((seen(page, preprocess)[..., 0] > 64).any(axis=1))
    assert (rows[0], rows[-1]) == (0, preprocess.height - 1)


def test_arrow_keys_draw(page: Page, predictor: Predictor) -> None:
    """With Shift held, arrow keys draw; without it they only move, and the mark they move is no part of the drawing."""
    page.wait(READY)
    tick(page, "source", "draw")
    page.run("document.querySelector('#center').click(); document.querySelector('#paper').focus()")
    for _ in range(3):
        page.key("ArrowLeft")
    assert page.run("document.querySelector('.answer')") is None
    for _ in range(9):
        page.key("ArrowDown", shift=True)
    page.key("Shift")
    (card,) = shown(page)
    pixels = seen(page, predictor.bundle.manifest.preprocess)
    assert pixels[4:6].max() > 100
    assert pixels[:2].max() == 0
    check_card(card, pixels, predictor)


def test_below_the_threshold_it_is_unknown(page: Page, golden: Path) -> None:
    """With a threshold that nothing reaches both sides say unknown, and agree."""
    page.wait(READY)
    tick(page, "place", "both")
    page.run("document.querySelector('#threshold').value = '1'")
    page.choose("#file", golden)
    assert [card["label"] for card in shown(page)] == ["unknown", "unknown"]
    assert page.run(AGREEMENT).startswith("They agree: unknown.")


@pytest.mark.parametrize(("place", "told"), [("server", "not an image that can be read here"), ("browser", "note.txt: not an image that this browser can read")])  # fmt: skip
def test_a_file_that_is_no_image_is_one_line(page: Page, tmp_path: Path, place: str, told: str) -> None:
    """A text file gives one line that says so and no answer, and the next image takes the line away."""
    (tmp_path / "note.txt").write_text("no image")
    page.wait(READY)
    tick(page, "place", place)
    page.choose("#file", tmp_path / "note.txt")
    text = page.wait(FAILED)
    assert told in text
    assert "\n" not in text
    assert page.run("document.querySelector('.answer')") is None
    Image.new("L", (8, 8)).save(tmp_path / "black.png")
    page.choose("#file", tmp_path / "black.png")
    shown(page)
    assert page.run("document.querySelector('#problem').hidden")


def test_a_server_that_is_gone_is_one_line(browser: Page, bundle: Bundle, golden: Path) -> None:
    """When the server has stopped, the page says so in one line that names it; in the browser the rest goes on."""
    with serving(make_app(bundle)) as served:
        page = fresh(browser, served)
        page.wait(READY)
        tick(page, "place", "both")
        page.choose("#file", golden)
        shown(page)
        served.stop()
        page.choose("#file", golden)
        text = page.wait(FAILED)
        assert text.startswith(f"No answer from 127.0.0.1:{served.port}: the server has stopped")
        assert "\n" not in text
        assert [card["where"] for card in shown(page)] == ["This browser"]
        assert page.run(AGREEMENT) == ""


def test_a_body_too_large_is_one_line(browser: Page, bundle: Bundle, tmp_path: Path) -> None:
    """A file over the server's limit gives the server's own reason."""
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8)).save(tmp_path / "noise.png")
    with serving(make_app(bundle, limits=Limits(body=1000, bodies=4000))) as served:
        page = fresh(browser, served)
        page.wait(READY)
        page.choose("#file", tmp_path / "noise.png")
        assert "1000" in page.wait(FAILED)


def test_the_token_is_asked_for_and_kept_for_the_tab(browser: Page, bundle: Bundle, golden: Path) -> None:
    """A wrong token is told so, the right one opens the page and is sent with everything, also after loading it again."""
    with serving(make_app(bundle, token="secret")) as served:
        page = fresh(browser, served)
        page.wait("!document.querySelector('#entry').hidden")
        assert page.run("document.querySelector('#main').hidden")
        assert page.run("document.querySelector('#about').textContent") == "", "nothing is loading any more"
        for token in ("wrong", "secret"):
            page.run(f"document.querySelector('#token').value = '{token}'")
            page.click("#entry button")
            text = "The server does not know this token."
            page.wait(READY if token == "secret" else f"document.querySelector('#problem').textContent === '{text}'")
        tick(page, "place", "both")
        page.choose("#file", golden)
        assert len(shown(page)) == 2
        page.open(served.url)
        page.wait(READY)
        assert page.run("document.querySelector('#entry').hidden")
        page.run("sessionStorage.clear()")


def test_without_the_runtime_the_page_says_how_to_get_it(
    browser: Page, server: Served, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where onnxruntime-web is not installed the page shows the command, offers the server alone, and its answer comes."""
    monkeypatch.setenv("EDGECNN_WEB", str(tmp_path / "none"))
    page = fresh(browser, server)
    page.wait(READY)
    command = page.run("document.querySelector('#install').textContent")
    assert command.startswith("npm install --ignore-scripts ")
    assert str(tmp_path / "none") in command
    off = "[...document.querySelectorAll('input[name=place]')].filter((place) => place.disabled).map((place) => place.value)"
    assert page.run(off) == ["browser", "both"]
    page.choose("#file", golden)
    assert [card["where"] for card in shown(page)] == ["Server"]
    assert server.get("/ort/ort.wasm.min.mjs")[0] == 404
    assert page.console == []


def test_the_policy_stops_what_is_not_the_pages_own(page: Page) -> None:
    """A script in the page, a request to another host and text that is evaluated are stopped, and the console says so."""
    page.wait(READY)
    page.run(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.planted = 1';"
        " document.body.append(script); const image = new Image(); image.src = 'http://127.0.0.2:9/a.png'; })()"
    )
    assert page.run("typeof window.planted") == "undefined"
    assert page.run("fetch('http://127.0.0.2:9/').then(() => 'sent', (error) => error.name)") == "TypeError"
    assert page.run(
        "new Promise((done) => setTimeout(() => { try { done(String(self.origin)); } catch { done('') } }))"
    )
    assert sum("Content Security Policy" in line for line in page.console) >= 2


def files() -> dict[str, bytes]:
    """Encode one picture, uneven in size and content, in every way that browsers read too."""
    generator = np.random.default_rng(9)
    small = Image.fromarray(generator.integers(0, 256, (9, 8, 4), dtype=np.uint8))
    picture = small.resize((53, 67), Image.Resampling.BICUBIC)
    colour, grey, alpha = picture.convert("RGB"), picture.convert("L"), picture
    tilted = Image.Exif()
    tilted[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "colour.png": (colour, "PNG", {}), "grey.png": (grey, "PNG", {}), "alpha.png": (alpha, "PNG", {}),
        "grey alpha.png": (alpha.convert("LA"), "PNG", {}), "palette.png": (colour.quantize(30), "PNG", {"transparency": 3}),
        "bits.png": (grey.convert("1"), "PNG", {}), "fine.jpg": (colour, "JPEG", {"quality": 95, "subsampling": 0}),
        "coarse.jpg": (colour, "JPEG", {"quality": 40}), "grey.jpg": (grey, "JPEG", {}),
        "stepwise.jpg": (colour, "JPEG", {"progressive": True}), "tilted.jpg": (colour, "JPEG", {"exif": tilted}),
        "a.bmp": (colour, "BMP", {}), "a.gif": (colour, "GIF", {}), "a.webp": (alpha, "WEBP", {"lossless": True}),
    }  # fmt: skip
    encoded = {}
    for name, (image, kind, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[name] = buffer.getvalue()
    return encoded


def test_the_browser_makes_the_pixels_that_edgecnn_makes(page: Page) -> None:
    """Of PNG, JPEG, BMP, GIF and WebP, with palette, transparency or a turn, decoded and resized pixels are equal to the bit."""
    page.wait(READY)
    page.run(
        "(async () => { window.d = await import('/page/decode.mjs'); window.p = await import('/page/pixels.mjs'); })()"
    )
    first = "true" if served_page.resizes_columns_first() else "false"
    preprocesses = [
        Preprocess(height=28, width=28, channels=1),
        Preprocess(height=67, width=53, channels=3, background=90),
        Preprocess(height=20, width=31, channels=3, fit="crop", background=0),
    ]
    for name, data in files().items():
        encoded = base64.b64encode(data).decode()
        for preprocess in preprocesses:
            settings = json.dumps(msgspec.to_builtins(preprocess))
            pixels = page.run(
                f"(async () => {{ const data = Uint8Array.from(atob('{encoded}'), (c) => c.charCodeAt(0));"
                f" const image = await d.decode(new Blob([data]), 'x');"
                f" return [...p.fit(image.rgba, image.width, image.height, {settings}, {first})]; }})()"
            )
            expected = images.decode(data, preprocess)
            np.testing.assert_array_equal(np.array(pixels, np.uint8).reshape(expected.shape), expected, err_msg=name)


def test_everything_to_press_has_a_name(page: Page) -> None:
    """Chromium's own tree of accessibility names every control, and tells the answer's region from the input's."""
    page.wait(READY)
    page.call("Accessibility.enable")
    tick(page, "source", "draw")
    page.run("for (const details of document.querySelectorAll('details')) details.open = true")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    found: dict[str, list[str]] = {}
    for node in nodes:
        if not node.get("ignored"):
            found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    controls = [
        name for role in ("radio", "checkbox", "button", "slider", "spinbutton", "combobox") for name in found[role]
    ]
    assert {"Server", "Browser", "Both", "Image", "Draw", "Clear"} <= set(controls)
    assert len(controls) >= 11
    assert all(controls)
    assert {"Image", "Answer"} <= set(found["region"])


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_the_screen(page: Page, golden: Path, width: int) -> None:
    """On narrow screens the page does not scroll sideways, with both answers shown."""
    page.view(width, 800, mobile=True)
    page.wait(READY)
    tick(page, "place", "both")
    page.choose("#file", golden)
    shown(page)
    wide = page.run("document.documentElement.scrollWidth")
    page.view(1100, 800)
    assert wide <= width
