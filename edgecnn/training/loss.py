"""What is minimised: cross-entropy with smoothed labels, weighted by class or mixed, and the distance to a teacher."""

from __future__ import annotations

import torch
from torch.nn import functional

from edgecnn.training.recipe import Recipe


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Weigh each class by the inverse of its frequency, so that the mean over the images is 1."""
    counts = torch.bincount(labels, minlength=classes).double()
    return (len(labels) / (classes * counts.clamp(min=1))).float()


def summed_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    partner: torch.Tensor,
    mix: torch.Tensor,
    weights: torch.Tensor | None,
    teacher: torch.Tensor | None,
    recipe: Recipe,
) -> torch.Tensor:
    """Sum the loss over the images, so that processes can add theirs up; the caller divides.

    Args:
        logits: float (n, classes).
        labels: of the images, int64 (n,).
        partner: labels of the images mixed in.
        mix: how much of each image is itself, float (n,).
        weights: of the classes, or None.
        teacher: the teacher's logits (n, classes), or None.
        recipe: smoothing and the teacher's share.
    """
    one = _smoothed(logits, labels, weights, recipe.label_smoothing)
    losses = one if bool((mix == 1).all()) else mix * one + (1 - mix) * _smoothed(logits, partner, weights, recipe.label_smoothing)  # fmt: skip
    if teacher is not None:
        soft = recipe.teacher_temperature
        distance = functional.kl_div(
            functional.log_softmax(logits / soft, 1), functional.log_softmax(teacher / soft, 1),
            reduction="none", log_target=True,
        ).sum(1)  # fmt: skip
        # Its gradient falls with the square of the temperature (Hinton et al. 2015, section 2).
        losses = (1 - recipe.teacher_weight) * losses + recipe.teacher_weight * soft**2 * distance
    return losses.sum()


def _smoothed(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    losses = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return losses if weights is None else losses * weights[labels]
