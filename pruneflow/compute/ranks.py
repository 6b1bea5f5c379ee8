"""Processes that share one calibration set: those that `torchrun` started, or this one alone.

Every rank runs the same program on batches of its own. What they find is exchanged so that all
ranks know the same, and come to what one process would: batches are added in their one order.
"""

import hashlib
import logging
import os
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pruneflow.compute.torchrun import is_launched
from pruneflow.errors import InputError, PruneflowError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that share the work.

    Attributes:
        rank: from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and speaks to people."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> list[Item]:
        """This rank's share: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, of one shape and type, in the order of the ranks."""
        if self.size == 1:
            return [tensor]

        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return parts

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            distributed.all_reduce(tensor)
        return tensor

    def first(self, tensor: Tensor) -> Tensor:
        """The first rank's tensor, in place: what all compute from the same is then the same."""
        if self.size > 1:
            distributed.broadcast(tensor, src=0)
        return tensor

    def agree(self, value: str, otherwise: str) -> None:
        """See to it that all ranks have come to the same value.

        Raises:
            InputError: they have not; what it says is `otherwise`.
        """
        digest = torch.tensor(list(hashlib.sha256(value.encode()).digest()))
        if any(not torch.equal(part, digest) for part in self.gather(digest)):
            raise InputError(otherwise)

    def leave(self) -> None:
        """End the exchange: no rank waits for this one any more."""
        if self.size > 1:
            distributed.destroy_process_group()


def own_gpus() -> list[int]:
    """This rank's GPUs, the first of which is its own: an equal share of the machine's, or all."""
    count = torch.cuda.device_count()
    if not is_launched():
        first = torch.cuda.current_device()
        return [first, *(gpu for gpu in range(count) if gpu != first)]
    share = max(1, count // int(os.environ["LOCAL_WORLD_SIZE"]))
    first = int(os.environ["LOCAL_RANK"]) * share % count
    return list(range(first, first + share))


@cache
def joined() -> Ranks:
    """Meet the other ranks, once a process; alone when `torchrun` did not start it.

    GPUs exchange by NCCL, each rank on its own (`own_gpus`), processors by Gloo.
    """
    if not is_launched() or os.environ["WORLD_SIZE"] == "1":
        return Ranks()
    if torch.cuda.is_available():
        torch.cuda.set_device(own_gpus()[0])
        distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        distributed.init_process_group("gloo")
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def launch(processes: int, *arguments: str) -> int:
    """Run `python ARGUMENTS` as ranks on this machine, as `torchrun` does, and wait for them.

    When one of them fails or dies, the others are ended.

    Returns:
        The exit code of the first that failed by itself, having said why; 0 when none did.

    Raises:
        PruneflowError: one was killed.
    """
    # Each rank computes with its share of the cores; what it says goes to the terminal by itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        if failure.exitcode > 0:
            return failure.exitcode
        raise PruneflowError(
            f"rank {rank} of {processes} was killed by signal {-failure.exitcode}, and the others "
            "were ended: what was done before is kept, run again to continue"
        ) from None
    return 0
