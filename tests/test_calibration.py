"""Temperature scaling: planted temperatures are found, validation never gets worse, and folding scales the logits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from scipy import special
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from torch import nn

from edgecnn.cli import cli
from edgecnn.errors import UsageError
from edgecnn.metrics import calibration, nll, softmax
from edgecnn.nets import FAMILIES, NetChoice, build_net, choose_net
from edgecnn.spec import Preprocess
from edgecnn.training.calibration import COLDEST, HOTTEST, fit_temperature, fold_temperature

Floats = npt.NDArray[np.float64]
IMAGE = Preprocess(height=32, width=32, channels=3)


def draws(n: int, classes: int, sharp: float, seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Draw logits, and labels with the very probabilities that they give."""
    rng = np.random.default_rng(seed)
    logits = sharp * rng.normal(size=(n, classes))
    labels = (softmax(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, np.minimum(labels, classes - 1)


@pytest.mark.parametrize("planted", [0.2, 0.7, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_a_planted_temperature_is_found(planted: float, classes: int) -> None:
    """Logits of a calibrated net times T give T back, and dividing by it takes the calibration error to chance's."""
    logits, labels = draws(6000, classes, 2.0)
    found = fit_temperature(planted * logits, labels)
    assert found == pytest.approx(planted, rel=0.06)
    after = calibration(planted * logits / found, labels)
    assert after.ece < 2 * after.ece_by_chance


@pytest.mark.parametrize("seed", range(6))
def test_the_temperature_is_the_one_that_scipy_finds(seed: int) -> None:
    """The minimum is that of scipy's bounded search over scikit-learn's log loss."""
    logits, labels = draws(300, 5, 1.0 + seed, seed)
    logits *= 0.5 + 0.5 * seed

    def loss(log_temperature: float) -> float:
        return float(log_loss(labels, softmax(logits / math.exp(log_temperature)), labels=range(5)))

    expected = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded")
    assert fit_temperature(logits, labels) == pytest.approx(math.exp(expected.x), rel=1e-3)


@pytest.mark.parametrize("seed", range(40))
def test_the_likelihood_never_gets_worse(seed: int) -> None:
    """On few images, with labels that have little or nothing to do with the logits, the loss never rises."""
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 30)), int(rng.integers(2, 6))
    logits = rng.normal(size=(n, classes)) * 10.0 ** rng.uniform(-3, 3)
    labels = np.where(rng.random(n) < rng.random(), logits.argmax(axis=1), rng.integers(0, classes, n))
    found = fit_temperature(logits, labels)
    assert COLDEST * 0.999 <= found <= HOTTEST * 1.001
    assert nll(logits / found, labels) <= nll(logits, labels)


@pytest.mark.parametrize("n", [10, 100, 1000])
def test_all_right_claims_no_more_than_the_images_can_show(n: int) -> None:
    """Where every answer is right the mean confidence ends at (n + 1) / (n + 2), not at 1."""
    rng = np.random.default_rng(n)
    logits = rng.uniform(0, 0.1, size=(n, 4))
    labels = rng.integers(0, 4, n)
    logits[np.arange(n), labels] += 1.0
    found = fit_temperature(logits, labels)
    assert COLDEST < found < 1
    assert softmax(logits / found).max(axis=1).mean() == pytest.approx((n + 1) / (n + 2), rel=1e-9)


def test_all_right_and_sure_already_stays_as_it_is() -> None:
    """A net that is all right and claims more than its images can show is not made surer, and not made less sure."""
    logits = np.tile([20.0, 0.0, 0.0], (50, 1))
    assert fit_temperature(logits, np.zeros(50, dtype=np.int64)) == 1.0


def test_logits_beyond_help_end_at_the_limits() -> None:
    """Answers all wrong end at the hottest, right ones of hardly any margin at the coldest, equal logits at 1."""
    labels = np.zeros(50, dtype=np.int64)
    assert fit_temperature(np.tile([0.0, 5.0], (50, 1)), labels) == pytest.approx(HOTTEST)
    assert fit_temperature(np.tile([1e-3, 0.0], (50, 1)), labels) == pytest.approx(COLDEST)
    assert fit_temperature(np.full((50, 3), 7.0), labels) == 1.0


def test_nothing_and_nan_are_refused() -> None:
    """Without images, or with a logit that is not finite, there is no temperature."""
    for logits in (np.zeros((0, 3)), np.array([[np.nan, 0.0, 1.0]])):
        with pytest.raises(ValueError, match="logit"):
            fit_temperature(logits, np.zeros(len(logits), dtype=np.int64))


class Hand(nn.Module):
    """A small network by hand whose last steps a test chooses."""

    def __init__(self, end: Callable[[Hand, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.end = end
        self.first, self.spare, self.last = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self, torch.relu(self.first(x.flatten(1))))


SMALL = Preprocess(height=2, width=2, channels=3)


def held(net: nn.Module, image: Preprocess, temperature: float) -> None:
    """Hold that folding divides every logit and changes no answer, no mode and no other layer."""
    noise = torch.randn(64, image.channels, image.height, image.width, generator=torch.Generator().manual_seed(1))
    net.requires_grad_(False).train()
    frozen = next(module for module in net.modules() if not list(module.children())).eval()
    modes = [module.training for module in net.modules()]
    fold_temperature(net, temperature, image)
    assert [module.training for module in net.modules()] == modes
    assert not frozen.training
    after = net.eval()(noise)
    fold_temperature(net, 1 / temperature, image)
    before = net.eval()(noise)
    assert torch.allclose(after * temperature, before, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_divides_the_logits_of_every_family(family: str) -> None:
    """Of every family of nets the logits are divided by exactly the temperature and the answers stay."""
    torch.manual_seed(0)
    model = choose_net(NetChoice(net=family), IMAGE, 10)
    held(build_net(model, IMAGE, 10), IMAGE, 1.7)


def test_folding_by_a_power_of_two_is_exact() -> None:
    """A temperature that a float can divide by without rounding gives the same bits, scaled."""
    torch.manual_seed(0)
    net = build_net(choose_net(NetChoice(net="compact"), IMAGE, 10), IMAGE, 10).eval()
    noise = torch.randn(16, 3, 32, 32)
    before = net(noise)
    fold_temperature(net, 4.0, IMAGE)
    assert torch.equal(net(noise) * 4, before)


@pytest.mark.parametrize(
    "end",
    [
        lambda net, x: net.last(x),
        lambda net, x: net.last(net.drop(x + net.spare(x))),
        lambda net, x: net.drop(net.last(x)),
        lambda net, x: net.last(x).reshape(-1, 5),
    ],
)
def test_folding_finds_the_last_linear_layer_of_any_module(end: Callable[[Hand, torch.Tensor], torch.Tensor]) -> None:
    """Of a module by hand the linear layer that gives the output is found, whatever the order of definition."""
    torch.manual_seed(0)
    held(Hand(end), SMALL, 0.4)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda net, x: torch.softmax(net.last(x), dim=1), "does not end in a linear layer"),
        (lambda net, x: net.last(x) + x[:, :5], "does not end in a linear layer"),
        (lambda net, x: net.spare(net.spare(x)), "used elsewhere too"),
    ],
)
def test_folding_refuses_what_it_cannot_scale(end: Callable[[Hand, torch.Tensor], torch.Tensor], reason: str) -> None:
    """A softmax, a sum behind the last layer, or a layer that runs twice is refused and leaves every weight as it was."""
    torch.manual_seed(0)
    net = Hand(end)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UsageError, match=reason):
        fold_temperature(net, 2.0, SMALL)
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_folding_refuses_weights_that_another_layer_shares() -> None:
    """Where two layers share one weight, scaling it would change more than the logits, and is refused."""
    torch.manual_seed(0)
    net = Hand(lambda net, x: net.last(torch.tanh(net.spare(x))))
    net.last = nn.Linear(8, 8)
    net.last.weight = net.spare.weight
    with pytest.raises(UsageError, match="used elsewhere too"):
        fold_temperature(net, 2.0, SMALL)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_folding_refuses_a_temperature_that_is_none(temperature: float) -> None:
    """A temperature that is not a positive number is refused."""
    with pytest.raises(UsageError, match="positive and finite"):
        fold_temperature(Hand(lambda net, x: net.last(x)), temperature, SMALL)


def test_folding_leaves_the_chance_of_others_alone() -> None:
    """The noise that folding runs through the network takes nothing from torch's own generator."""
    net = Hand(lambda net, x: net.last(x))
    state = torch.get_rng_state()
    fold_temperature(net, 2.0, SMALL)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.usefixtures("steady", "no_pictures")
def test_exported_files_carry_the_temperature(tmp_path: Path) -> None:
    """Of two trainings that differ in --calibrate alone, fp32 and int8 give logits divided by the temperature; parity passes."""
    pixels, logits, truth = np.zeros(0), {}, {}
    for name, more in (("plain", []), ("calibrated", ["--calibrate"])):
        run, bundle = tmp_path / name / "run", tmp_path / name / "bundle"
        words = ["train", "digits", "-o", str(run), "--widths", "8,32", "--depth", "1", "--epochs", "4", *more]
        for command in (words, ["export", str(run), "-o", str(bundle), "--max-drop", "30"]):
            result = CliRunner().invoke(cli, command)
            assert result.exit_code == 0, result.stderr
        with np.load(bundle / "goldens/arrays.npz") as arrays:
            pixels, truth[name] = arrays["pixels"], arrays["logits_float64"]
        for precision in ("fp32", "int8"):
            session = onnxruntime.InferenceSession(bundle / f"{precision}.onnx", providers=["CPUExecutionProvider"])
            logits[name, precision], odds = session.run(["logits", "probabilities"], {"image": pixels})
            assert np.allclose(odds, special.softmax(logits[name, precision], axis=1), atol=1e-5)
        cells = json.loads((bundle / "manifest.json").read_text())["evidence"]["parity"]["cells"]
        verdicts = {cell["artifact"]: cell["computation"]["verdict"] for cell in cells}
        assert verdicts == {"fp32": "PASS", "int8": "PASS"}
        temperature = json.loads((run / "metrics.json").read_text())["temperature"]
        assert (temperature != 1) == bool(more)
    assert abs(math.log(temperature)) > 0.05, "or nothing could be told apart"
    assert np.allclose(truth["calibrated"] * temperature, truth["plain"], rtol=1e-4, atol=1e-4)
    for precision, share in (("fp32", 1e-4), ("int8", 0.1)):
        plain, divided = (logits[name, precision] for name in ("plain", "calibrated"))
        off = np.linalg.norm(divided * temperature - plain) / np.linalg.norm(plain)
        assert off < share
        assert off < abs(1 - 1 / temperature), "the temperature is what it is, not rounding"
        # The scale that fits best, by least squares, is the temperature.
        assert float((plain * divided).sum() / (divided**2).sum()) == pytest.approx(temperature, rel=0.02)
