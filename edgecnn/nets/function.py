"""A network of someone else's: any torch module that a function of theirs makes."""

from __future__ import annotations

import importlib
import os
import sys

import torch
from torch import nn

from edgecnn.errors import UsageError
from edgecnn.spec import Preprocess


def build_from_function(name: str, preprocess: Preprocess, classes: int) -> nn.Module:
    """Call `package.module:function` with the keywords channels, height, width and classes.

    It returns a module that takes normalised float images (N, channels, height, width) and gives logits (N, classes).

    Raises:
        UsageError: it cannot be imported or called, or what it makes does not fit.
    """
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:  # as `python -m` would find it  # noqa: PTH109  # sys.path holds strings
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--net {name}: cannot be imported ({error}); give package.module:function") from None
    shape = {"channels": preprocess.channels, "height": preprocess.height, "width": preprocess.width}
    try:
        net = function(**shape, classes=classes)
    except Exception as error:  # their code may raise anything
        raise UsageError(
            f"--net {name}: its call with channels, height, width and classes failed ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(net, nn.Module) or not any(True for _ in net.parameters()):
        raise UsageError(f"--net {name}: returned {type(net).__name__}, not a torch module with parameters")
    _try(net, name, preprocess, classes)
    return net


def _try(net: nn.Module, name: str, preprocess: Preprocess, classes: int) -> None:
    """Run two empty images through the network: it must fit before an hour is spent on it."""
    images = torch.zeros(2, preprocess.channels, preprocess.height, preprocess.width)
    training = net.training
    try:
        with torch.inference_mode():
            logits = net.eval()(images)
    except Exception as error:  # their code may raise anything
        shape = tuple(images.shape)
        raise UsageError(f"--net {name}: does not take images {shape} ({type(error).__name__}: {error})") from error
    finally:
        net.train(training)
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != (2, classes):
        raise UsageError(f"--net {name}: gives {got} for two images, not logits {(2, classes)}")
