"""A network of someone else's: any torch module that a function of theirs makes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from edgecnn.errors import UsageError
from edgecnn.spec import Preprocess

TRUST = "EDGECNN_TRUST_FUNCTIONS"
_ANYTHING = (Exception, SystemExit)  # their code may raise whatever it likes
_imported: set[str] = set()  # what this process was told by its own user to run


def build_from_function(name: str, preprocess: Preprocess, classes: int) -> nn.Module:
    """Call `package.module:function` with the keywords channels, height, width and classes.

    It returns a module that takes normalised float images (N, channels, height, width) and gives logits (N, classes).

    Raises:
        UsageError: it cannot be imported or called, or what it makes does not fit.
    """
    function = _import(name)
    _imported.add(name)
    shape = {"channels": preprocess.channels, "height": preprocess.height, "width": preprocess.width}
    try:
        net = function(**shape, classes=classes)
    except _ANYTHING as error:
        raise UsageError(
            f"net {name}: its call with channels, height, width and classes failed ({_said(error)})"
        ) from error
    if not isinstance(net, nn.Module):
        raise UsageError(f"net {name}: returned {type(net).__name__}, not a torch module")
    if not any(True for _ in net.parameters()):
        raise UsageError(f"net {name}: returned {type(net).__name__} without any parameters to train")
    _try(net, name, preprocess, classes)
    return net


def is_trusted(name: str) -> bool:
    """Say whether a net's function may be run though it was a bundle that named it.

    To import it runs code from the current folder, or wherever Python looks, and a bundle may be anybody's. The variable
    EDGECNN_TRUST_FUNCTIONS=1 allows it; so does the user, by having had this process run the same function before, as an
    export does.
    """
    return name in _imported or os.environ.get(TRUST) == "1"


def _import(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()  # noqa: PTH109  # sys.path holds strings
    if here not in sys.path:  # as `python -m` would find it
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except _ANYTHING as error:
        raise UsageError(
            f"net {name}: {module_name!r} cannot be imported ({_said(error)}); "
            "it is looked for in the current folder and among Python's packages"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"net {name}: {module.__file__ or module_name} has no function {function_name!r}")
    return function  # type: ignore[no-any-return]  # as said above


def _said(error: BaseException) -> str:
    """Write an exception of someone else's in one line, not too long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def _try(net: nn.Module, name: str, preprocess: Preprocess, classes: int) -> None:
    """Run two empty images through the network: it must fit before an hour is spent on it."""
    images = torch.zeros(2, preprocess.channels, preprocess.height, preprocess.width)
    training = net.training
    try:
        with torch.no_grad():  # not inference_mode, in which lazy modules would make weights that cannot be trained
            logits = net.eval()(images)
    except _ANYTHING as error:
        raise UsageError(f"net {name}: does not take images {tuple(images.shape)} ({_said(error)})") from error
    finally:
        net.train(training)
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != (2, classes):
        raise UsageError(f"net {name}: gives {got} for two images, not logits {(2, classes)}")
