"""The plot of a soak's page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from edgecnn.report.svg import Line, plot_lines


def test_a_plot_puts_points_where_they_belong() -> None:
    """The line's points rise with the values, keep their order and proportions, and stay within the picture."""
    svg = plot_lines(
        "T<b>", "x & y", "y", [Line("a", [0, 1, 2, 4], [0, 10, 20, 40]), Line("b", [0, 4], [float("nan"), 5])]
    )
    root = ElementTree.fromstring(svg)
    line = next(one for one in root.iter() if one.tag.endswith("polyline"))
    points = np.array([[float(value) for value in pair.split(",")] for pair in line.attrib["points"].split()])
    assert np.all(np.diff(points[:, 0]) > 0)
    assert np.all(np.diff(points[:, 1]) < 0), "up is up"
    steps = np.diff(points, axis=0)
    assert steps[2] == pytest.approx(2 * steps[0], abs=0.2)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert points.min() >= 0
    assert points[:, 0].max() <= width
    assert points[:, 1].max() <= height
    assert any(one.text == "T<b>" for one in root.iter())


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 7.0], [1e12, 1.0000001e12]])
def test_any_values_can_be_plotted(values: list[float]) -> None:
    """Equal, tiny, huge and negative values give a picture whose numbers are all finite."""
    for from_zero in (True, False):
        svg = plot_lines("t", "x", "y", [Line("a", [0.0, 1.0], values)], from_zero)
        ElementTree.fromstring(svg)
        assert "nan" not in svg
        assert "inf" not in svg


def test_nothing_to_plot_is_said() -> None:
    """Without a finite point there is a sentence in place of a picture."""
    assert "nothing to plot" in plot_lines("t", "x", "y", [Line("a", [0.0], [float("nan")])])
