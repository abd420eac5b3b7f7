"""Several processes, started by torchrun: which one this is, which part of the work is its own, what all must know.

    torchrun --nproc_per_node=4 tools/...

A process that was started plainly is rank 0 of 1, the whole work is its own, and nothing here does anything else.
Lightning Fabric joins the processes, with gloo between processors and NCCL between GPUs; it takes seconds to import,
so that is done where there are several. What is exchanged must be asked for by all ranks, in the same order.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from rgb2pc_lib.data.files.faults import Faults
from rgb2pc_lib.errors import InputError

if TYPE_CHECKING:  # it takes seconds to import
    from lightning_fabric import Fabric

Item = TypeVar("Item")


def rank() -> int:
    """The number of this process, 0 .. world() - 1 (torchrun's RANK). Rank 0 is the one that writes and speaks."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """The number of processes over all machines (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", 1))


def shard(items: Iterable[Item]) -> list[Item]:
    """This rank's items: every world()-th, from the rank()-th on, in their order.

    Together the ranks have every item exactly once, and no rank has more than one item more than another. Nothing is
    exchanged, so all ranks must list the items in the same order (sort what comes from a folder), and what one rank
    has written is not seen by another that listed before. Alone, this is `list(items)`.

    >>> shard("abc")  # one process; with two, rank 0 has a and c, rank 1 has b
    ['a', 'b', 'c']
    """
    return list(items)[rank() :: world()]


def own_device(device: str) -> str:
    """The device of this process: "cuda" is the card torchrun gives it (LOCAL_RANK); anything else is left as it is.

    >>> own_device("cpu"), own_device("cuda:1")
    ('cpu', 'cuda:1')
    """
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def own_cores() -> int:
    """Processor cores for each process on this machine, at least one."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def rows(n: int) -> slice:
    """This rank's rows of a batch of n, one after another. Raises InputError where n cannot be divided evenly.

    >>> rows(64)  # one process
    slice(0, 64, None)
    """
    each, rest = divmod(n, world())
    if rest or not each:
        near = " or ".join(str(m * world()) for m in (each, each + 1) if m)
        raise InputError(f"--batch_size {n} cannot be divided evenly among {world()} processes; choose {near}")
    return slice(rank() * each, (rank() + 1) * each)


def device() -> torch.device:
    """Where this rank computes, among several: its own GPU, or the processor where GPUs do not suffice."""
    return _fabric().device


def gather(tensor: Tensor) -> Tensor:
    """Rows `[b, ...]` of every rank, rank 0's first: `[world * b, ...]`, without gradient."""
    if world() == 1:
        return tensor
    own = tensor.detach().to(device()).contiguous()
    whole = own.new_empty(world() * len(own), *own.shape[1:])
    torch.distributed.all_gather(list(whole.chunk(world())), own)  # Fabric's calls what torch no longer wants called
    return whole.to(tensor.device)


def add_up(tensors: list[Tensor]) -> None:
    """Each tensor becomes its sum over the ranks, the same bits on all of them."""
    if world() == 1:
        return
    flat = _fabric().all_reduce(torch.cat([t.detach().flatten() for t in tensors]), reduce_op="sum")
    assert isinstance(flat, Tensor)
    for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.detach().copy_(summed.view_as(tensor))


def from_first(value: Item) -> Item:
    """Rank 0's value, on every rank."""
    return value if world() == 1 else _fabric().broadcast(value)


def any_of(flag: bool) -> bool:
    """Whether it is so on any rank."""
    return flag if world() == 1 else bool(gather(torch.tensor([int(flag)])).any())


@contextmanager
def agreed() -> Iterator[None]:
    """Work that each rank does by itself, here done by all or by none: an InputError of one is raised by all."""
    message = ""
    try:
        yield
    except InputError as e:
        if world() == 1:
            raise
        message = str(e)
    if world() > 1:
        failed = gather(torch.tensor([int(bool(message))])).tolist()
        if any(failed):
            raise InputError(_fabric().broadcast(message, src=failed.index(1)))


def first_then_rest(make: Callable[[], Item]) -> Item:
    """What each rank makes by itself: rank 0, and then the others at once, from the caches that it left."""
    with agreed():
        if rank() == 0:
            made = make()
    with agreed():
        if rank() > 0:
            made = make()
    return made


def tell(faults: Faults, report: Path) -> int:
    """`Faults.tell` of the faults of all ranks, by rank 0, once all have come to here, however long that takes.

    A process that ended with a status of its own would end the others, whose work is not yet done. Ranks that were not
    started together (by torchrun) have a report each.
    """
    together = torch.distributed.is_torchelastic_launched()
    if world() > 1 and together:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=365))
        found: list[Any] = [None] * world()
        torch.distributed.all_gather_object(found, faults.found)
        for others in found:
            faults.found |= others
    if rank() == 0:
        return faults.tell(report)
    return 2 * bool(faults.found) if together else faults.tell(report.with_stem(f"{report.stem}.{rank()}"))


def wait() -> None:
    """Until all ranks are here."""
    if world() > 1:
        _fabric().barrier()


@cache
def _fabric() -> Fabric:
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import TorchElasticEnvironment

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    kind = "cuda" if torch.cuda.device_count() >= here else "cpu"
    machines = world() // here
    fabric = Fabric(
        accelerator=kind, strategy="ddp", devices=here, num_nodes=machines, plugins=[TorchElasticEnvironment()]
    )
    fabric.launch()
    return fabric
