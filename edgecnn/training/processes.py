"""Several processes that train one network together, under torchrun; one process is the same with a count of 1."""

from __future__ import annotations

import os
import re
import signal
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from edgecnn.errors import LostProcessError, TrainingError, UsageError

_PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class Processes:
    """Which of `count` processes this is, and what they do together; every result is the same in all of them."""

    rank: int = 0
    count: int = 1
    local_count: int = 1
    device: str = "cpu"

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
            LostProcessError: another process has died.
        """
        if self.count > 1:
            try:
                distributed.all_reduce(values)
            except RuntimeError as error:
                raise LostProcessError(
                    f"process {self.rank} of {self.count} lost another one ({_first_line(error)}); look for its message, "
                    "then go on with --resume"
                ) from error
        return values

    def of_first(self, value: float) -> float:
        """Give every process the first one's value."""
        return float(self.sum(torch.tensor(value if self.first else 0.0, dtype=torch.float64, device=self.device)))

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
        UsageError: there are fewer CUDA devices than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE, device
    cuda = device.startswith("cuda")
    local, local_rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if cuda:
        if local > torch.cuda.device_count():
            raise UsageError(f"{local} processes need {local} CUDA devices, and torch sees {torch.cuda.device_count()}")
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    elif local == count:
        _keep_to_this_machine()
    signal.signal(signal.SIGTERM, _stopped)
    try:
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"the {count} processes could not join ({_first_line(error)}); start them with torchrun") from error  # fmt: skip
    return Processes(rank=distributed.get_rank(), count=count, local_count=local, device=device), device


def _keep_to_this_machine() -> None:
    """Let gloo talk over the loopback: it would look the host's name up, which may lead nowhere without a network."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def _stopped(number: int, frame: object) -> None:
    """Say why this process ends: torchrun stops all of them as soon as one has died."""
    raise LostProcessError("stopped by torchrun, as another process has ended; look for its message, then go on with --resume")  # fmt: skip


class SharedNorm(nn.BatchNorm2d):
    """Batch norm whose statistics are those of the whole batch, all processes' parts together (Ioffe and Szegedy 2015)."""

    processes: Processes = ALONE

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, H, W)."""
        if not self.training:
            return super().forward(x)
        weight = x.new_ones(self.num_features) if self.weight is None else self.weight
        bias = x.new_zeros(self.num_features) if self.bias is None else self.bias
        y, mean, variance, count = _Normalise.apply(x, weight, bias, self.eps, self.processes)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            seen = 1 if self.num_batches_tracked is None else int(self.num_batches_tracked) + 1
            momentum = 1 / seen if self.momentum is None else self.momentum  # None is the plain mean of all batches
            if self.running_mean is not None and self.running_var is not None:
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * float(count / (count - 1).clamp(min=1)), momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalised: torch.Tensor = y
        return normalised


class _Normalise(torch.autograd.Function):
    """The passes over x are torch's own kernels: with given statistics its batch norm is one pass, and so is its derivative."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, processes: Processes
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        count = x.numel() // x.shape[1]
        unused = torch.zeros_like(weight), torch.ones_like(weight)  # their number type is that of the statistics
        mean, variance = (part.double() for part in torch.batch_norm_update_stats(x, *unused, 0.0))
        # Sums in float64: a mean of squares less a square of the mean loses digits.
        sums = processes.sum(torch.cat([mean * count, (variance + mean**2) * count, mean.new_tensor([count])]))
        total = sums[-1]
        mean, square = (sums[:-1] / total).chunk(2)
        variance = (square - mean**2).clamp(min=0)
        mean, variance = mean.to(weight.dtype), variance.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.total, ctx.eps, ctx.processes = float(total), eps, processes
        y = torch.native_batch_norm(x, weight, bias, mean, variance, False, 0.0, eps)[0]
        ctx.mark_non_differentiable(mean, variance, total)
        return y, mean, variance, total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, mean, variance = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        shared = ctx.processes.sum(torch.cat([of_bias, of_weight])) / ctx.total
        mean_gradient, mean_product = shared.chunk(2)
        # Mean and variance depend on x as well: what they carry back is a plane for each channel, linear in x.
        inverse = (variance + ctx.eps).rsqrt()
        slope = -weight * inverse**2 * mean_product
        level = -weight * inverse * mean_gradient - slope * mean
        through = torch.addcmul(_planes(level), x.to(weight.dtype), _planes(slope))
        return (of_x + through).to(x.dtype), of_weight, of_bias, None, None


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
    """Take the first sentence, without the line of the C++ source before it."""
    line = re.sub(r"^\[\S*\] *", "", str(error).strip().partition("\n")[0])
    return line.partition(". ")[0][:160] or type(error).__name__
