"""The ranks of a stage, and what they tell each other beside their gradients."""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

T = TypeVar("T")

WAIT = datetime.timedelta(days=7)
"""The limit of a wait for other ranks. One rank may decode or label for hours while others wait, and a wait that ends
too early loses the run. If a rank fails, torchrun ends the others, not this limit."""


STORE_VARIABLE = "SELFTRAIN_RANKS"
"""The file by which ranks that torchrun.py started find each other; others use torchrun's own way."""
NODE_VARIABLE = "SELFTRAIN_NODE"
"""`K/N` in the processes of machine K, from 0 on, of N; not set on a single machine."""
_POLL_S = 0.1


def env_rank() -> int:
    """The rank of this process, as torchrun sets it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def count_over_machines() -> None:
    """In a rank that torchrun started on one of several machines, count the ranks of all of them, as torch and
    Accelerate read it. Rank 0 is on machine 0."""
    if NODE_VARIABLE in os.environ and "RANK" in os.environ:
        node, nodes = map(int, os.environ[NODE_VARIABLE].split("/"))
        rank, number = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        os.environ |= {"RANK": str(node * number + rank), "WORLD_SIZE": str(nodes * number)}


class Ranks:
    """All ranks of a stage. With a single rank every call is free and needs no torch."""

    def __init__(self, rank: int = 0, number: int = 1, hosts: ProcessGroup | None = None) -> None:
        self.rank, self.number = rank, number
        self._hosts = hosts

    @classmethod
    def join(cls, device: str) -> Ranks:
        """Join the ranks that torchrun started. All of them must call this."""
        number = int(os.environ.get("WORLD_SIZE", "1"))
        if number == 1:
            return cls()
        from torch import distributed

        # Accelerate uses a process group that exists. Host tensors travel by gloo on any device.
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        place: dict[str, Any] = {}
        if where := os.environ.get(STORE_VARIABLE):
            found = {"store": _meet(Path(where))} if NODE_VARIABLE in os.environ else {"init_method": f"file://{where}"}
            place = {"rank": env_rank(), "world_size": number, **found}
        distributed.init_process_group(backend, timeout=WAIT, **place)
        # Flags travel between hosts, because an all-reduce on the devices would make every step wait for them.
        return cls(env_rank(), number, distributed.new_group(backend="gloo", timeout=WAIT))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes."""
        return self.rank == 0

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main rank run the block first, then the others."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def wait(self) -> None:
        """Return when every rank has called this."""
        if self._hosts is not None:
            from torch import distributed

            distributed.barrier(group=self._hosts)

    def leave(self) -> None:
        """Leave the group, once all ranks have called this."""
        if self._hosts is not None:
            from torch import distributed

            self.wait()
            distributed.destroy_process_group()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. All ranks must call this."""
        if self._hosts is None:
            return flag
        import torch
        from torch import distributed

        vote = torch.tensor(int(flag))
        distributed.all_reduce(vote, distributed.ReduceOp.MAX, group=self._hosts)
        return bool(vote.item())

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, small ones on the host, in the order of the ranks. All ranks must call this."""
        if self._hosts is None:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.number
        distributed.all_gather_object(values, value, group=self._hosts)
        return values

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors, of any shapes but on one device, by their means over ranks, in one all-reduce."""
        if self.number == 1 or not tensors:
            return
        import torch
        from torch import distributed

        with torch.no_grad():
            flat = torch.cat([t.reshape(-1) for t in tensors])
            distributed.all_reduce(flat)
            flat /= self.number
            for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.view_as(tensor))


def _meet(where: Path) -> Store:
    """The store of ranks on several machines. Rank 0 serves it and writes its address into the file `where`, which
    others wait for: if rank 0 never comes, their parents end them.

    A store in a file would need a file system whose locks reach other machines. What is in it is never unpickled.
    """
    from torch._C._distributed_c10d import TCPStore

    from pipeline.files import read_json, write_json
    from pipeline.stages.interface import interface

    if env_rank() == 0:
        address = interface().address
        store = TCPStore(address, 0, None, is_master=True, timeout=WAIT, wait_for_workers=False)
        write_json(where, {"host": address, "port": store.port})
        return store
    while not where.exists():
        time.sleep(_POLL_S)
    found = read_json(where)
    return TCPStore(found["host"], found["port"], None, is_master=False, timeout=WAIT, wait_for_workers=False)
