"""`data check`: every fault planted in a set is found, and nothing else; the page and the command."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageEnhance

from edgecnn.cli import cli
from edgecnn.data import DataOptions, LabelledImages, near
from edgecnn.data.dataset import Item
from edgecnn.data.near import Sketches, near_duplicates, shrink
from edgecnn.data.quality import DataReport, check_data
from edgecnn.errors import DataError
from edgecnn.report.data import data_text
from edgecnn.report.data_page import data_page


def scene(seed: int, side: int = 48) -> Image.Image:
    """Paint soft coloured shapes: as unlike each other, and as smooth, as photographs are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    fine = rng.normal(0, 8, (side, side, 1))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC)) + fine
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a faultless set of two classes in three splits. Copy it before changing it."""
    root = tmp_path_factory.mktemp("clean") / "set"
    seed = 0
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        for label in ("cat", "dog"):
            for index in range(count):
                seed += 1
                path = root / split / label / f"{index:02d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                scene(seed).save(path)
    return root


@pytest.fixture
def root(clean: Path, tmp_path: Path) -> Path:
    """Return a copy of the faultless set."""
    shutil.copytree(clean, tmp_path / "set")
    return tmp_path / "set"


def check(root: Path, **options: object) -> DataReport:
    """Check a set."""
    return check_data(str(root), DataOptions(**options))[0]  # type: ignore[arg-type]


def found(report: DataReport) -> dict[str, list[list[str]]]:
    """Map the kinds of findings to the names of each case's images, or to its note without what Pillow says."""
    return {
        finding.kind: [
            [image.name for image in case.images] or [case.note.partition(" (")[0]] for case in finding.cases
        ]
        for finding in report.findings
    }


def test_a_clean_set_has_no_findings(clean: Path) -> None:
    """In a set without faults nothing is found, and the counts are those of the folders."""
    report = check(clean)
    assert report.findings == ()
    assert [(one.label, one.images, one.train, one.val, one.test) for one in report.classes] == [
        ("cat", 20, 12, 4, 4),
        ("dog", 20, 12, 4, 4),
    ]
    assert (report.images, report.listed, report.imbalance) == (40, 40, 1.0)
    assert data_text(report).endswith("nothing found")


def saved_again(root: Path) -> None:
    """Save a training image as a JPEG in the test."""
    Image.open(root / "train/cat/03.png").save(root / "test/cat/again.jpg", quality=80)


def brightened(root: Path) -> None:
    """Put a darker copy beside an image."""
    ImageEnhance.Brightness(Image.open(root / "train/dog/03.png")).enhance(0.8).save(root / "train/dog/dark.png")


def rescaled(root: Path) -> None:
    """Put a smaller copy under another label beside an image."""
    Image.open(root / "train/dog/04.png").resize((40, 40)).save(root / "train/cat/small.png")


def copy_to(target: str) -> Callable[[Path], None]:
    """Copy a training image, losslessly but in another format."""

    def plant(root: Path) -> None:
        Image.open(root / "train/cat/05.png").save(root / target)

    return plant


def broken(root: Path) -> None:
    """Add an empty and a cut file."""
    (root / "train/cat/empty.png").touch()
    (root / "val/dog/cut.png").write_bytes((root / "val/dog/00.png").read_bytes()[:700])


def grey(root: Path) -> None:
    """Add an image of one grey."""
    Image.new("L", (48, 48), 77).save(root / "train/cat/grey.png")


def small(root: Path) -> None:
    """Add a class of three training images."""
    (root / "train/emu").mkdir()
    for index in range(3):
        scene(900 + index).save(root / f"train/emu/{index}.png")


def many(root: Path) -> None:
    """Make one class ten times as large."""
    for index in range(180):
        scene(1000 + index, 16).resize((48, 48)).save(root / f"train/cat/more{index}.png")


def wrong_split(root: Path) -> None:
    """Take all training images of a class away."""
    shutil.rmtree(root / "train/dog")


PLANTED: dict[str, tuple[Callable[[Path], None], dict[str, list[list[str]]]]] = {
    "saved again in the test": (
        saved_again,
        {
            "near leak": [["test/cat/again.jpg", "train/cat/03.png"]],
            "near duplicate": [["test/cat/again.jpg", "train/cat/03.png"]],
        },
    ),
    "brightened": (brightened, {"near duplicate": [["train/dog/03.png", "train/dog/dark.png"]]}),
    "rescaled": (rescaled, {"near duplicate": [["train/cat/small.png", "train/dog/04.png"]]}),
    "twice": (copy_to("train/cat/twice.bmp"), {"duplicate": [["train/cat/05.png", "train/cat/twice.bmp"]]}),
    "in the test too": (
        copy_to("test/cat/leak.bmp"),
        {"leak": [["test/cat/leak.bmp", "train/cat/05.png"]], "duplicate": [["test/cat/leak.bmp", "train/cat/05.png"]]},
    ),
    "under two labels": (
        copy_to("train/dog/other.bmp"),
        {
            "conflict": [["train/cat/05.png", "train/dog/other.bmp"]],
            "duplicate": [["train/cat/05.png", "train/dog/other.bmp"]],
        },
    ),
    "broken": (
        broken,
        {
            "broken": [
                ["{root}/train/cat/empty.png: the file is empty"],
                ["{root}/val/dog/cut.png: damaged or truncated image"],
            ]
        },
    ),
    "one grey": (grey, {"one colour": [["train/cat/grey.png"]]}),
    "small class": (small, {"small class": [["emu: 3 training images"]]}),
    "imbalance": (many, {"imbalance": [["cat has 200 images, dog has 20"]]}),
    "no training images": (
        wrong_split,
        {
            "unusable": [["{root}: no training image of dog; every class needs some"]],
            "small class": [["dog: 0 training images"]],
        },
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", PLANTED)
def test_exactly_what_was_planted_is_found(root: Path, fault: str, stream: bool) -> None:
    """A planted fault is found with its images, nothing else is, and the same when images are streamed."""
    plant, expected = PLANTED[fault]
    plant(root)
    report = check(root, stream=stream)
    kinds = {kind: [[text.format(root=root) for text in case] for case in cases] for kind, cases in expected.items()}
    order = {kind: [sorted(case) for case in cases] for kind, cases in found(report).items()}
    assert order == {kind: [sorted(case) for case in cases] for kind, cases in kinds.items()}
    weighty = {"broken", "conflict", "leak", "near leak", "unusable"}
    assert {finding.kind for finding in report.weighty()} == weighty & set(expected)


def test_all_faults_at_once_are_told_apart(root: Path) -> None:
    """Planted together, the faults are all found, the gravest first, and each with its label and split."""
    for plant, _ in (PLANTED[name] for name in ("saved again in the test", "in the test too", "broken", "one grey")):
        plant(root)
    report = check(root)
    assert [finding.kind for finding in report.findings] == [
        "broken", "leak", "near leak", "duplicate", "near duplicate", "one colour",
    ]  # fmt: skip
    shown = report.findings[1].cases[0].images
    assert {(image.name, image.label, image.split) for image in shown} == {
        ("test/cat/leak.bmp", "cat", "test"),
        ("train/cat/05.png", "cat", "train"),
    }
    assert report.listed - report.images == 2


def test_headers_are_counted(root: Path) -> None:
    """Sizes, colour modes and formats are those of the files as saved, counted by hand."""
    scene(901).resize((60, 20)).save(root / "train/cat/wide.jpg")
    scene(902).convert("L").save(root / "train/cat/grey.bmp")
    scene(903).convert("RGBA").save(root / "train/cat/alpha.png")
    saved = check(root).as_saved
    assert saved.modes == {"colour": 41, "colour with alpha": 1, "grey": 1}
    assert saved.formats == {"PNG": 41, "BMP": 1, "JPEG": 1}
    assert saved.sizes is not None
    assert (saved.sizes.min, saved.sizes.median, saved.sizes.max) == ((48, 20), (48, 48), (60, 48))
    assert saved.sizes.commonest == {"48x48": 42, "60x20": 1}


def test_a_set_too_small_to_split_is_reported(tmp_path: Path) -> None:
    """A set that training would refuse is reported with the reason, not refused."""
    for index in range(4):
        path = tmp_path / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        scene(index).save(path)
    report = check(tmp_path)
    assert "too few images for a split" in found(report)["unusable"][0][0]
    assert report.split is None
    assert "impossible" in data_text(report)
    assert [(one.images, one.train) for one in report.classes] == [(2, None), (2, None)]


def test_one_class_is_reported(tmp_path: Path) -> None:
    """A set of one class is reported as what training would refuse."""
    (tmp_path / "only").mkdir()
    for index in range(20):
        scene(index).save(tmp_path / "only" / f"{index}.png")
    assert "one class only" in found(check(tmp_path))["unusable"][0][0]


def test_a_set_of_broken_files_only_is_an_error(tmp_path: Path) -> None:
    """Where nothing can be read there is nothing to report on."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 1 images can be read"):
        check(tmp_path)


def test_straddling_groups_are_a_finding(root: Path) -> None:
    """Groups that the source's own splits tear apart are found."""
    report = check(root, group_from=r"cat|dog")
    assert "2 groups are in more than one of the source's splits" in found(report)["group"][0][0]


# Nearly identical images


def images(pixels: np.ndarray) -> LabelledImages:
    """Make a split of pixels (N, H, W, C)."""
    items = tuple(Item(str(index), 0, one) for index, one in enumerate(pixels))
    return LabelledImages(pixels, np.zeros(len(pixels), dtype=np.int64), items)


def near_groups(pixels: np.ndarray) -> list[list[int]]:
    """Find the groups of nearly identical images."""
    some = images(pixels)
    return [group for group, _ in near_duplicates(some, Sketches.of(some), np.arange(len(some)))]


def variants(image: Image.Image) -> dict[str, Image.Image]:
    """Do to an image what happens to images."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    noise = np.random.default_rng(0).normal(0, 4, (image.height, image.width, 3))
    return {
        "saved as JPEG": Image.open(buffer).convert("RGB"),
        "rescaled": image.resize((30, 30)).resize(image.size),
        "brighter": ImageEnhance.Brightness(image).enhance(0.85),
        "more contrast": ImageEnhance.Contrast(image).enhance(0.8),
        "noisy": Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8)),
    }


@pytest.mark.parametrize("kind", list(variants(scene(0))))
def test_what_happens_to_images_is_recognised(kind: str) -> None:
    """A copy that was saved again, rescaled, brightened or has noise is grouped with its original, and only with it."""
    originals = [scene(seed) for seed in range(40)]
    copies = [variants(one)[kind] for one in originals[:10]]
    pixels = np.stack([np.asarray(one) for one in [*originals, *copies]])
    assert near_groups(pixels) == [[index, 40 + index] for index in range(10)]


@pytest.mark.parametrize("change", ["mirrored", "turned", "cropped", "recoloured"])
def test_what_is_another_picture_is_not_grouped(change: str) -> None:
    """A mirrored, turned, strongly cropped or recoloured copy counts as another picture."""
    make: dict[str, Callable[[Image.Image], Image.Image]] = {
        "mirrored": lambda one: one.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "turned": lambda one: one.transpose(Image.Transpose.ROTATE_90),
        "cropped": lambda one: one.crop((8, 8, 40, 40)).resize((48, 48)),
        "recoloured": lambda one: Image.merge("RGB", one.split()[::-1]),
    }
    originals = [scene(seed) for seed in range(12)]
    pixels = np.stack([np.asarray(one) for one in [*originals, *map(make[change], originals)]])
    assert near_groups(pixels) == []


def test_candidates_are_all_pairs_that_correlate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The grid misses none of the pairs that comparing all with all finds, whatever the sizes of its blocks."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (30, 20, 20))
    pixels = (centres[rng.integers(0, 30, 900)] + rng.normal(0, 5, (900, 20, 20))).clip(0, 255).astype(np.uint8)
    vectors = Sketches.of(images(pixels[..., None])).vectors
    plain = np.corrcoef(vectors.astype(np.float64))
    wanted = {(a, b) for a, b in np.argwhere(plain >= 0.9905).tolist() if a < b}
    assert len(wanted) > 1000
    monkeypatch.setattr(near, "_PARTNERS", 1000)
    for products, rows in ((4_000_000, 20_000), (500, 7)):
        monkeypatch.setattr(near, "_PRODUCTS", products)
        monkeypatch.setattr(near, "_ROWS", rows)
        pairs = [
            (min(a, b), max(a, b))
            for one, other, _ in near._candidates(vectors, np.arange(900))
            for a, b in zip(one.tolist(), other.tolist(), strict=True)
        ]
        assert len(pairs) == len(set(pairs))
        assert wanted <= set(pairs)
        assert all(plain[pair] >= 0.9895 for pair in pairs)


def test_groups_are_the_connected_parts() -> None:
    """The groups are the connected parts of the graph of pairs that correlate, by scipy's count and numpy's correlation."""
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(1)
    centres = rng.integers(0, 256, (12, 24, 24, 1))
    pixels = (centres[np.arange(60) % 12] + rng.normal(0, 5.2, (60, 24, 24, 1))).clip(0, 255).astype(np.uint8)
    plain = np.corrcoef(pixels.reshape(60, -1).astype(np.float64)) >= near.ALIKE
    assert 60 < plain.sum() < 12 * 25  # some of the pairs, not all
    count, part = connected_components(plain)
    expected = [np.flatnonzero(part == number).tolist() for number in range(count)]
    assert near_groups(pixels) == sorted(group for group in expected if len(group) > 1)


def test_a_crowd_of_equals_is_one_group() -> None:
    """Frames of a camera that sees nothing happen are one group, found in bounded work."""
    rng = np.random.default_rng(2)
    frame = rng.integers(0, 256, (16, 16, 1))
    pixels = (frame + rng.normal(0, 2, (500, 16, 16, 1))).clip(0, 255).astype(np.uint8)
    assert near_groups(pixels) == [list(range(500))]


def test_flat_images_are_not_compared() -> None:
    """Images of hardly any contrast are nobody's duplicates: all that they share is noise and a gradient."""
    slope = np.tile(np.linspace(100, 109, 20), (20, 1))[None, :, :, None]
    pixels = (slope + np.random.default_rng(3).normal(0, 0.05, (30, 20, 20, 1))).astype(np.uint8)
    assert len(np.unique(pixels.reshape(30, -1), axis=0)) == 30
    assert near_groups(pixels) == []
    assert near_groups(pixels + (pixels - 100) * 4) == [list(range(30))]  # with contrast they would be


@pytest.mark.parametrize(("side", "blocks"), [(5, 80), (16, 16), (32, 32), (33, 528), (48, 48)])
def test_shrinking_averages_areas(side: int, blocks: int) -> None:
    """Each pixel of the small image is the mean of the area it covers, taken here on a grid that both sizes divide."""
    pixels = np.random.default_rng(4).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    fine = pixels.repeat(blocks // side, axis=1).repeat(blocks // side, axis=2).astype(np.float64)
    each = blocks // 16
    wanted = fine.reshape(3, 16, each, 16, each, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(shrink(pixels, 16, 16), wanted, rtol=1e-5)


# The page and the command


class Seen(HTMLParser):
    """Collects the tags of a page, with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.mark.parametrize("stream", [False, True])
def test_the_page_shows_every_finding_with_pictures(root: Path, stream: bool) -> None:
    """The page names every finding and image, carries the pictures inside, runs nothing and fetches nothing."""
    for name in ("saved again in the test", "in the test too", "broken", "one grey"):
        PLANTED[name][0](root)
    report, whole = check_data(str(root), DataOptions(stream=stream))
    page = data_page(report, whole)
    seen = Seen()
    seen.feed(page)
    assert not {tag for tag, _ in seen.tags} & {"script", "link", "iframe", "object"}
    pictures = [attributes["src"] or "" for tag, attributes in seen.tags if tag == "img"]
    assert len(pictures) == 2 * 4 + 1 + 6 * 2  # pairs, the grey one, and six of each class
    assert all(re.match(r"data:image/(png|jpeg);base64,", uri) for uri in pictures)
    for finding in report.findings:
        assert (finding.title[0].upper() + finding.title[1:]) in page
        for case in finding.cases:
            for image in case.images:
                assert image.name.replace("/", "/<wbr>") in page
    assert "empty.png: the file is empty" in page


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    """Markup in class and file names is shown, not obeyed."""
    for index in range(30):
        path = tmp_path / ("<script>alert(1)<" if index % 2 else 'b"&') / f"<img src=x onerror=y>{index}.png"
        path.parent.mkdir(exist_ok=True)
        scene(index // 4).save(path)
    page = data_page(*check_data(str(tmp_path), DataOptions()))
    seen = Seen()
    seen.feed(page)
    assert not [tag for tag, attributes in seen.tags if tag == "script" or "onerror" in attributes]
    assert "&lt;script&gt;" in page


def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command."""
    done = CliRunner().invoke(cli, ["data", "check", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_findings_do_not_fail_the_command(root: Path) -> None:
    """The command lists its findings as text, all broken files among them, and ends well."""
    broken(root)
    code, out, err = run(str(root))
    assert (code, err) == (0, "")
    assert "!! 2 images cannot be read" in out
    assert f"{root}/val/dog/cut.png: damaged" in out
    assert out.rstrip().endswith("findings of weight: 2 images cannot be read")


@pytest.mark.parametrize(
    ("fault", "code"),
    [("broken", 3), ("under two labels", 3), ("in the test too", 3), ("saved again in the test", 3), ("no training images", 3),
     ("twice", 0), ("one grey", 0), ("small class", 0), ("brightened", 0)],
)  # fmt: skip
def test_strict_fails_for_what_is_of_weight(root: Path, fault: str, code: int) -> None:
    """With --strict, findings of weight end with exit code 3 and one line; others do not."""
    PLANTED[fault][0](root)
    got, out, err = run(str(root), "--strict")
    assert got == code
    assert out
    assert len(err.splitlines()) == (1 if code else 0)


def test_json_is_the_whole_report(root: Path) -> None:
    """With --json stdout is one document with every finding, and with -o the page is written beside it."""
    saved_again(root)
    page = root.parent / "page.html"
    code, out, err = run(str(root), "--json", "-o", str(page))
    document = json.loads(out)
    assert code == 0
    assert [finding["kind"] for finding in document["findings"]] == ["near leak", "near duplicate"]
    assert document["findings"][0]["cases"][0]["images"][0]["name"] == "test/cat/again.jpg"
    assert document["classes"][0] == {"label": "cat", "images": 21, "train": 12, "val": 4, "test": 5}
    assert err == f"written {page}\n"
    assert page.read_text().startswith("<!doctype html>")


def test_the_options_of_training_reach_the_check(root: Path) -> None:
    """Shares, seed, groups, size and colour are those that training would be given."""
    shutil.rmtree(root / "val")
    options = ("--val", "0.25", "--seed", "7", "--image-size", "20", "--channels", "1", "--fit", "crop")
    document = json.loads(run(str(root), *options, "--json")[1])
    assert document["shape"] == [20, 20, 1]
    assert document["split"] == "train 18, val 6, test 8; val split off by class with seed 7"
    document = json.loads(run(str(root), "--group-from", r"\d\d(?=\.png)", "--json")[1])
    assert "by group (12 groups)" in document["split"]


@pytest.mark.parametrize("arguments", [["nowhere"], ["digits", "--group-from", "("], ["digits", "--val", "2"]])
def test_mistakes_are_one_line(arguments: list[str]) -> None:
    """What cannot be opened, and options that make no sense, are one line and exit code 2."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_long_lists_are_cut_in_text_only(tmp_path: Path) -> None:
    """Of many cases the text shows ten and says how many are left out; the report has all."""
    for index in range(60):
        path = tmp_path / "ab"[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (48, 48), (4 * index, 255 - 4 * index, 9)).save(path)
    report = check(tmp_path)
    assert len(found(report)["one colour"]) == 60
    assert "... and 50 more: see --json" in data_text(report)
