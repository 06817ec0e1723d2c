"""What is fed: random inputs of the right shapes that repeat, mixtures that look like goldens, and honest words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from parity.fakes import chain_file
from quantization import graphs

from edgecnn.errors import DataError, UsageError
from edgecnn.parity.random_inputs import random_samples
from edgecnn.parity.samples import mixed_samples, spread
from edgecnn.parity.subject import Subject
from edgecnn.quantization.conversion import InputOptions


def test_random_inputs_are_standard_normal_and_repeat(tmp_path: Path) -> None:
    """A float input gets normal numbers of its shape, the same each time and in any batches, and the words say so."""
    samples = random_samples(Subject.of_model(chain_file(tmp_path)), 50)
    first = np.concatenate([feeds["x"] for feeds in samples.batches(64)])
    again = np.concatenate([feeds["x"] for feeds in samples.batches(7)])
    assert (first.shape, first.dtype) == ((50, 3, 8, 8), np.float32)
    np.testing.assert_array_equal(first, again)
    assert abs(first.mean()) < 0.05
    assert first.std() == pytest.approx(1, abs=0.05)
    assert "not the range of real inputs" in samples.record.said
    assert samples.record.labels is None
    (few,) = samples.batches(64, np.array([40, 3]))
    np.testing.assert_array_equal(few["x"], first[[40, 3]])


def test_a_normalisation_makes_random_pixels(tmp_path: Path) -> None:
    """With --mean and --std random bytes are normalised as real pixels would be."""
    options = InputOptions(mean=(0.5,), std=(0.25,))
    samples = random_samples(Subject.of_model(chain_file(tmp_path)), 20, options)
    (feeds,) = samples.batches(64)
    pictures = np.stack([samples.pictures([index])[index] for index in range(20)])
    expected = (pictures.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(feeds["x"], expected, atol=1e-6)
    assert pictures.dtype == np.uint8


def test_a_free_size_has_to_be_given(tmp_path: Path) -> None:
    """A net of any height and width asks for --size, and takes it."""
    model = graphs.graph(
        [graphs.node("Conv", "x w", "c"), graphs.node("GlobalAveragePool", "c", "y")],
        (3, 8, 8),
        w=np.ones((2, 3, 1, 1)),
    )
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    path = tmp_path / "free.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UsageError, match="--size"):
        random_samples(Subject.of_model(path), 4)
    (feeds,) = random_samples(Subject.of_model(path), 4, InputOptions(height=6, width=9)).batches(8)
    assert feeds["x"].shape == (4, 3, 6, 9)


def test_mixtures_look_like_the_goldens() -> None:
    """Mixtures of smooth images have their range and their smoothness, which noise has not, and repeat."""
    ramp = np.linspace(20, 200, 32)
    goldens = np.stack([np.add.outer(ramp, slope * ramp)[..., None] / (1 + slope) for slope in (0.0, 0.5, 1.0)])
    samples = mixed_samples(goldens.astype(np.uint8), 40, "image")
    (feeds,) = samples.batches(64)
    made = feeds["image"].astype(np.float64)
    assert (feeds["image"].shape, feeds["image"].dtype) == ((40, 32, 32, 1), np.uint8)
    steps = np.abs(np.diff(made, axis=1))
    assert np.median(steps) < 12  # even noise would step by 75
    assert abs(made.mean() - goldens.mean()) < 20
    assert len({image.tobytes() for image in feeds["image"]}) == 40
    np.testing.assert_array_equal(next(samples.batches(64))["image"], feeds["image"])


@pytest.mark.parametrize("count", [0, -3])
def test_no_random_inputs_are_an_error(count: int, tmp_path: Path) -> None:
    """Nothing to run is refused."""
    with pytest.raises(DataError, match="nothing was compared"):
        mixed_samples(np.zeros((2, 4, 4, 1), np.uint8), count, "image")
    with pytest.raises(DataError, match="nothing was compared"):
        random_samples(Subject.of_model(chain_file(tmp_path)), count)


def test_a_spread_goes_from_end_to_end_in_whole_batches() -> None:
    """The first and the last sample are among those chosen, none twice, and a model's batch divides their number."""
    chosen = spread(1000, 256)
    assert (chosen[0], chosen[-1], len(set(chosen.tolist()))) == (0, 999, 256)
    assert len(spread(1000, 256, 10)) == 250
    assert spread(3, 256).tolist() == [0, 1, 2]
