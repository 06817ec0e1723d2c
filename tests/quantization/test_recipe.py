"""Recipes: each target's, held to a table written out by hand."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from edgecnn.errors import UsageError
from edgecnn.quantization import recipe
from edgecnn.quantization.recipe import Precision, Recipe, precision_for, recipe_for, resolve_target
from edgecnn.spec import TARGETS, Target

RECIPES = {
    "any": ("uint8", True, True),
    "x86-64": ("uint8", True, True),
    "x86-64-vnni": ("uint8", False, True),
    "arm64": ("uint8", False, True),
    "tensorrt": ("int8", False, False),
}


@pytest.mark.parametrize("target", RECIPES)
def test_each_target_has_its_number_types(target: Target) -> None:
    """Seven-bit weights where 16-bit sums saturate or might; symmetric activations and float biases for TensorRT alone."""
    found = recipe_for(target)
    assert (found.activations, found.reduced_range, found.integer_bias) == RECIPES[target]


def test_the_table_misses_no_target() -> None:
    """Every target has a recipe in the table above, but CUDA, which gets float16."""
    assert {*RECIPES, "cuda"} == set(TARGETS)


def test_the_usual_recipe_is_that_of_vnni() -> None:
    """What nobody has asked for otherwise is U8S8 with full weights and integer biases."""
    assert Recipe() == recipe_for("x86-64-vnni")


@pytest.mark.parametrize(("target", "asked"), list(itertools.product(TARGETS, (None, *get_args(Precision)))))
def test_a_precision_without_kernels_is_refused(target: Target, asked: Precision | None) -> None:
    """int8 on CUDA and fp16 on a CPU are refused, with both options in the message and another way; all else is granted."""
    pointless = (target == "cuda" and asked in ("int8", "mixed")) or (
        target in ("any", "x86-64", "x86-64-vnni", "arm64") and asked == "fp16"
    )
    if pointless:
        with pytest.raises(UsageError) as caught:
            precision_for(target, asked)
        message = str(caught.value)
        assert f"--target {target} --precision {asked}" in message
        assert "; use --precision" in message
        assert "\n" not in message
    elif asked is not None:
        assert precision_for(target, asked) == asked
    else:
        assert precision_for(target, None) == ("fp16" if target == "cuda" else "mixed")


def test_host_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`host` becomes what the machine is found to be, and every other name stays."""
    monkeypatch.setattr(recipe, "target_of_host", lambda: "arm64")
    assert resolve_target("host") == "arm64"
    assert [resolve_target(name) for name in TARGETS] == list(TARGETS)
