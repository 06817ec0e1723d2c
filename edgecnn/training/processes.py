"""Several processes that train one network together, under torchrun; one process is the same with a count of 1."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from edgecnn.errors import TrainingError

_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """Which of `count` processes this is, and what they do together; every result is the same in all of them."""

    rank: int = 0
    count: int = 1
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Say whether this is the one that writes files and talks."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """Give this process's part of `total` images; parts begin at even numbers, so that pairs stay together."""
        pairs = (total + 1) // 2
        first, last = (pairs * rank // self.count * 2 for rank in (self.rank, self.rank + 1))
        return slice(first, min(last, total))

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over all processes, in place.

        Raises:
            TrainingError: another process has died.
        """
        if self.count > 1:
            try:
                distributed.all_reduce(values)
            except RuntimeError as error:
                raise TrainingError(
                    f"process {self.rank} of {self.count} lost another one ({_first_line(error)}); look for its message, "
                    "then go on with --resume"
                ) from error
        return values

    def sum_gradients(self, net: nn.Module) -> None:
        """Add the gradients up over all processes, all in one message."""
        gradients = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
        if self.count == 1 or not gradients:
            return
        flat = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        offset = 0
        for gradient in gradients:
            gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()


ALONE = Processes()


def join_processes(device: str) -> tuple[Processes, str]:
    """Join the processes that torchrun started, if it did, and return this one's own device beside them.

    Raises:
        TrainingError: they could not find each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE, device
    cuda = device.startswith("cuda")
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the {count} processes could not join ({_first_line(error)}); start them with torchrun") from error  # fmt: skip
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return Processes(rank=distributed.get_rank(), count=count, local_count=local), device


class SharedNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the whole batch, all processes' parts together (Ioffe and Szegedy 2015)."""

    processes: Processes = ALONE

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.processes)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            momentum = 0.1 if self.momentum is None else self.momentum
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalised: torch.Tensor = y
        return normalised


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, processes: Processes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        count = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.float(), dim=(0, 2, 3), correction=0)
        mean, variance = mean.double(), variance.double()
        # Sums in float64: a mean of squares less a square of the mean loses digits.
        sums = processes.sum(torch.cat([mean * count, (variance + mean**2) * count, mean.new_tensor([count])]))
        total = sums[-1]
        mean, square = (sums[:-1] / total).chunk(2)
        variance = (square - mean**2).clamp(min=0)
        inverse = (variance + eps).rsqrt().to(weight.dtype)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.total, ctx.processes = float(total), processes
        scale = weight * inverse
        y = (x * _planes(scale) + _planes(bias - mean * scale)).to(x.dtype)
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total.to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient = gradients[0]
        normal = (x - _planes(mean)) * _planes(inverse)
        of_bias = gradient.sum(dim=(0, 2, 3))
        of_weight = (gradient * normal).sum(dim=(0, 2, 3))
        shared = ctx.processes.sum(torch.cat([of_bias, of_weight])) / ctx.total
        mean_gradient, mean_product = shared.chunk(2)
        of_x = _planes(weight * inverse) * (gradient - _planes(mean_gradient) - normal * _planes(mean_product))
        return of_x.to(x.dtype), of_weight, of_bias, None, None


def share_norms(net: nn.Module, processes: Processes) -> None:
    """Let every batch norm of the network take its statistics over all processes; parameters stay the same objects."""
    for name, child in net.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = SharedNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            shared.weight, shared.bias = child.weight, child.bias
            shared.running_mean, shared.running_var = child.running_mean, child.running_var
            shared.num_batches_tracked = child.num_batches_tracked
            shared.processes = processes
            setattr(net, name, shared.train(child.training))
        else:
            share_norms(child, processes)


def _planes(values: torch.Tensor) -> torch.Tensor:
    return values[None, :, None, None]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
