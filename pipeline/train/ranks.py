"""What the ranks of a training tell each other beside their gradients."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

WAIT = datetime.timedelta(days=7)
"""For a collective. A rank may decode a large data set while others wait, and a wait that is given up loses the run; a
rank that fails ends the others through torchrun, not through this."""


class Ranks:
    """All ranks of this training; made by each of them at the same time. Of one rank, every call is free."""

    def __init__(self) -> None:
        self.number = distributed.get_world_size() if distributed.is_initialized() else 1
        # Flags travel between hosts: an all-reduce on the devices would make every step wait for them.
        self._hosts = distributed.new_group(backend="gloo", timeout=WAIT) if self.number > 1 else None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on one of the ranks. All of them must ask."""
        if self._hosts is None:
            return flag
        vote = torch.tensor(int(flag))
        distributed.all_reduce(vote, distributed.ReduceOp.MAX, group=self._hosts)
        return bool(vote.item())

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace the tensors by their means over ranks, in one all-reduce."""
        if self.number == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        distributed.all_reduce(flat)
        flat /= self.number
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))
