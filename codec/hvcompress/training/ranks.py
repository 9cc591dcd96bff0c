"""Several processes that train one model together, each on batches of its own, on one machine or many (`torchrun`).

Every process holds the same weights and does the same steps with them: what differs are the batches, and gradients are
averaged over all processes before a step. So n processes train as one would with a batch n times as large, but for how
batches are drawn: the photographs are shared out between the processes, and each batch covers the qualities by itself.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this is. Alone, all of the following does nothing."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def number(self, step: int) -> int:
        """Number of this process's batch of a step: no two processes or steps share one.

        Only if their count stays the same: a run that goes on with fewer processes meets numbers, and with them
        qualities, offsets and places of crops, that it has had before.
        """
        return step * self.count + self.rank

    def share(self, weights: Iterable[Tensor]) -> None:
        """Give all processes the weights of the first, in place."""
        if self.count > 1:
            for weight in weights:
                whole = weight.detach().contiguous()
                torch.distributed.broadcast(whole, 0)
                with torch.no_grad():
                    weight.copy_(whole)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over all processes: one message, whatever the number of weights."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def sum(self, value: int, device: torch.device) -> int:
        """Of a number over all processes."""
        if self.count == 1:
            return value
        total = torch.tensor(value, device=device)
        torch.distributed.all_reduce(total)
        return int(total)

    def any(self, asked: bool, device: torch.device) -> bool:
        """Whether any process was asked: they go on or stop together, or those left would wait for ever."""
        return self.sum(int(asked), device) > 0


ALONE = Ranks()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """This process among those that torchrun has started, and its device: its own one where there are several GPUs."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Ranks(torch.distributed.get_rank(), count), device
    finally:
        torch.distributed.destroy_process_group()
        gc.collect()  # what cycles of references keep of it would abort the process at its end
