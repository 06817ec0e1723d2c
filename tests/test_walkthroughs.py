"""The walk-throughs in docs/ run as they stand, on made data in the real formats, and keep what they promise."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from steady import steady_races
from walkthrough_data import make_gtsrb, make_medmnist, make_xray_folders

from edgecnn.cli import cli
from edgecnn.data import DataOptions, Dataset, open_data
from edgecnn.metrics import wilson
from edgecnn.nets import NetChoice, build_net, choose_net, measure_cost
from edgecnn.runs import open_run_data, read_run
from edgecnn.spec import Preprocess

DOCS = Path(__file__).resolve().parents[1] / "docs"
# What a real training and a bench take is shortened, and what int8 gains in time is not left to a busy machine.
QUICK = {
    "train": ["--epochs", "5", "--batch-size", "16", "--size", "n", "--width", "0.3", "--depth", "1"],
    "bench": ["--seconds", "0.2"],
}
REPORTED = {"runs/pneumonia", "runs/signs"}  # of these runs the reports are looked at, and of no other
SIGNS = (1, 2, 5, 12, 14, 33, 34, 38)


@dataclass(frozen=True)
class Walked:
    """A page, the folder in which its commands ran, and what each gave."""

    page: str
    folder: Path
    results: dict[str, Result]

    def find(self, start: str) -> Result:
        """Return what the first command gave that starts so."""
        return next(result for command, result in self.results.items() if command.startswith(start))


def commands(page: str) -> list[str]:
    """List the lines with a prompt in a page's console blocks."""
    blocks = re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def walk(name: str, folder: Path) -> Walked:
    """Do what a page says, in its order, in a folder that holds the data."""
    page = (DOCS / name).read_text()
    for script, code in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        (folder / script).write_text(code)
    results = {}
    before = Path.cwd()
    os.chdir(folder)
    try:
        for command in commands(page):
            program, *arguments = shlex.split(command)
            if program == "python":
                subprocess.run([sys.executable, *arguments], check=True, cwd=folder)
                continue
            if program == "printf":
                subprocess.run(command, shell=True, check=True, cwd=folder)
                continue
            assert program == "edgecnn", command
            with steady_races(), pytest.MonkeyPatch.context() as patch:
                if arguments[0] == "train" and not REPORTED & set(arguments):
                    patch.setattr("edgecnn.training.evaluate._write_pictures", lambda *_: None)
                results[command] = CliRunner().invoke(cli, [*arguments, *QUICK.get(arguments[0], [])])
    finally:
        os.chdir(before)
    return Walked(page, folder, results)


@pytest.fixture(scope="module")
def medical(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """Walk through the page on medical images."""
    folder = tmp_path_factory.mktemp("medical")
    make_medmnist(folder / "pneumoniamnist.npz", 28, (160, 80, 160))
    make_medmnist(folder / "pneumoniamnist_64.npz", 64, (64, 32, 64))
    make_xray_folders(folder / "xrays", patients=20)
    return walk("medical-images.md", folder)


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    """Walk through the page on road signs."""
    folder = tmp_path_factory.mktemp("roads")
    make_gtsrb(folder / "GTSRB", SIGNS, tracks=8, frames=6, tests=160)
    return walk("road-signs.md", folder)


def fails(walked: Walked) -> dict[str, str]:
    """List the commands that did not end as they should; parity's exit code is to fit its verdict."""
    wrong = {}
    for command, result in walked.results.items():
        undecided = command.startswith("edgecnn parity") and "INCONCLUSIVE" in result.output
        if result.exit_code != (3 if undecided else 0):
            wrong[command] = f"{result.exit_code}: {result.output[-500:]}"
    return wrong


def groups_on_both_sides(dataset: Dataset, expression: str) -> set[str]:
    """List the groups that are in train and held out too, by names and expression alone."""

    def found(items: tuple[object, ...]) -> set[str]:
        return {re.search(expression, item.name).group() for item in items}  # type: ignore[attr-defined,union-attr]

    return found(dataset.train.items) & (found(dataset.val.items) | found(dataset.test.items))


@pytest.mark.slow
def test_medical_page_runs(medical: Walked) -> None:
    """Every command of the page on medical images ends well, up to the bundle."""
    assert len(medical.results) >= 10
    assert not {command: said for command, said in fails(medical).items() if "bundles/" not in command}


@pytest.mark.slow
def test_medical_set_is_looked_over(medical: Walked) -> None:
    """The classes get the page's names, `data check` counts them and finds nothing, and its page is written."""
    said = medical.find("edgecnn data check pneumoniamnist.npz").stdout
    assert re.search(r"^normal +100 +40 +20 +40$", said, re.MULTILINE)
    assert re.search(r"^pneumonia +300 +120 +60 +120$", said, re.MULTILINE)
    assert said.splitlines()[-1] == "nothing found"
    assert "<html" in (medical.folder / "pneumonia.html").read_text()
    assert read_run(medical.folder / "runs/pneumonia")[0].labels == ("normal", "pneumonia")
    assert "by group (20 groups)" in medical.find("edgecnn data check xrays").stdout


@pytest.mark.slow
def test_medical_bundle_commands_run(medical: Walked) -> None:
    """The page's commands on the bundle end well too, and the page on what the net looks at is written."""
    assert not fails(medical)
    assert "<html" in (medical.folder / "where.html").read_text()


@pytest.mark.slow
def test_medical_page_shows_what_it_explains(medical: Walked) -> None:
    """The lines that the page explains are printed, and the report is one file that fetches nothing."""
    said = medical.find("edgecnn train pneumoniamnist.npz").stdout
    for name in ("test accuracy", "AUC", "macro F1", "worst class", "ECE", "temperature"):
        assert f"\n{name} " in f"\n{said}"
        assert f"`{name}`" in medical.page
    report = (medical.folder / "runs/pneumonia/report.html").read_text()
    assert "before the temperature" in report
    assert not re.search(r"(src|href)=[\"']https?:", report)


@pytest.mark.slow
def test_calibration_helps(medical: Walked) -> None:
    """The temperature lowers likelihood and calibration error on the validation images that it was fitted on."""
    metrics = read_run(medical.folder / "runs/pneumonia")[1]
    assert metrics.temperature != 1
    assert (metrics.val_nll or 1e9) < (metrics.val_nll_before or 0)
    assert (metrics.val_ece or 1e9) < (metrics.val_ece_before or 0)


@pytest.mark.slow
def test_medical_choices_are_followed(medical: Walked) -> None:
    """Chests are not mirrored, the larger file is seen at its size, rare classes are weighted."""
    config = read_run(medical.folder / "runs/pneumonia")[0]
    assert config.recipe["augment"]["mirror"] is False
    assert config.recipe["balance"] == "weights"
    assert config.preprocess.shape == (28, 28, 1)
    assert read_run(medical.folder / "runs/pneumonia-64")[0].preprocess.shape == (64, 64, 1)


@pytest.mark.slow
def test_patients_stay_on_one_side(medical: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    """No patient of the page's x-rays is in two splits; without --group-from some are."""
    monkeypatch.chdir(medical.folder)
    config = read_run(Path("runs/xrays"))[0]
    assert not groups_on_both_sides(open_run_data(config), r"patient\d+")
    assert "(20 groups)" in config.split
    assert groups_on_both_sides(open_data("xrays", DataOptions()), r"patient\d+")


def test_intervals_on_the_page() -> None:
    """The page's intervals at 624 and 156 images are Wilson's, and its bound without a flip is what it says."""
    page = (DOCS / "medical-images.md").read_text()
    for images in (624, 156):
        low, high = wilson(round(0.854 * images), images)
        assert f"between {low:.1%} and {high:.1%}".replace("%", " %") in " ".join(page.split())
    assert f"is {1 - 0.05 ** (1 / 156):.1%}".replace("%", " points") in page


@pytest.mark.parametrize("size", ["n", "s"])
def test_costs_on_the_page(size: str) -> None:
    """The page's table of MACs is what these networks cost."""
    page = (DOCS / "medical-images.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith(f"| `--size {size}`"))
    written = [cell.strip() for cell in row.strip("| ").split("|")[1:]]
    costs = []
    for side in (28, 64, 128, 224):
        images = Preprocess(height=side, width=side, channels=1)
        config = choose_net(NetChoice(size="n" if size == "n" else "s"), images, 2)
        costs.append(f"{measure_cost(build_net(config, images, 2), images).macs / 1e6:.1f}")
    assert written == costs


@pytest.mark.slow
def test_road_page_runs(roads: Walked) -> None:
    """Every command of the page on road signs ends well."""
    assert len(roads.results) >= 7
    assert not fails(roads)
    assert (roads.folder / "runs/signs/report.html").is_file()
    assert "<html" in (roads.folder / "where.html").read_text()


@pytest.mark.slow
def test_signs_are_looked_over(roads: Walked) -> None:
    """As the page says, `data check` finds nothing in the wrong split either; the right one and the table count groups."""
    said = [result.stdout for command, result in roads.results.items() if command.startswith("edgecnn data check")]
    assert [text.splitlines()[-1] for text in said] == ["nothing found"] * 3
    assert ["by group (64 groups)" in text for text in said] == [False, True, True]
    assert "<html" in (roads.folder / "signs.html").read_text()


@pytest.mark.slow
def test_one_table_holds_both_parts(roads: Walked) -> None:
    """The page's script lists every image once, with the label of the official tables, the test ones as test."""
    rows = list(csv.DictReader((roads.folder / "GTSRB/signs.csv").open()))
    images = {path.relative_to(roads.folder / "GTSRB").as_posix() for path in (roads.folder / "GTSRB").rglob("*.ppm")}
    assert len(rows) == len(images)
    assert {row["path"] for row in rows} == images
    for row in rows:
        test = row["path"].startswith("Final_Test")
        assert (row["split"] == "test") == test
        assert test or int(row["path"].split("/")[2]) == int(row["label"])
    answers = list(csv.reader((roads.folder / "GTSRB/Final_Test/Images/GT-final_test.csv").open(), delimiter=";"))[1:]
    assert [row["label"] for row in rows if row["split"] == "test"] == [answer[-1] for answer in answers]


@pytest.mark.slow
def test_tracks_stay_on_one_side(roads: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    """No track is on both sides in the page's good ways, most are in its wrong way, and signs are never mirrored."""
    monkeypatch.chdir(roads.folder)
    configs = {name: read_run(Path("runs") / name)[0] for name in ("mixed", "apart", "signs")}
    data = {name: open_run_data(config) for name, config in configs.items()}
    track = r".+/\d{5}(_|\.)"
    assert len(groups_on_both_sides(data["mixed"], track)) > 8 * len(SIGNS) / 2
    assert not groups_on_both_sides(data["apart"], track)
    assert not groups_on_both_sides(data["signs"], track)
    assert len(data["signs"].test) == 160
    assert data["signs"].preprocess.shape == (48, 48, 3)
    assert data["signs"].labels == tuple(str(sign) for sign in SIGNS)
    assert not any(config.recipe["augment"]["mirror"] for config in configs.values())


@pytest.mark.slow
def test_mixed_tracks_flatter_as_the_page_says(roads: Walked, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-up of the nearest training image gives the page's two shares on the made signs."""
    monkeypatch.chdir(roads.folder)
    shares = []
    for name in ("mixed", "apart"):
        data = open_run_data(read_run(Path("runs") / name)[0])
        train, test = (part.pixels.reshape(len(part), -1).astype(np.float64) for part in (data.train, data.test))
        distances = (train**2).sum(axis=1) - 2 * test @ train.T
        shares.append(float((data.train.labels[distances.argmin(axis=1)] == data.test.labels).mean()))
    assert shares[0] - shares[1] > 0.2
    said = re.search(r"right for (\d+) % of the test images in the first split and for (\d+) %", roads.page)
    assert said is not None
    # Another Pillow may draw a digit a little differently.
    assert [int(number) / 100 for number in said.groups()] == pytest.approx(shares, abs=0.04)


@pytest.mark.slow
def test_predictions_name_a_class(roads: Walked) -> None:
    """Predicting two test images gives a line each with labels of the table."""
    lines = roads.find("edgecnn predict").stdout.splitlines()
    assert len(lines) == 2
    assert all(line.split("\t")[1].split()[0] in map(str, SIGNS) for line in lines)
    assert json.loads((roads.folder / "bundles/signs/manifest.json").read_text())["labels"] == list(map(str, SIGNS))
