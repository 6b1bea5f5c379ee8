"""Data-parallel ranks: the processes that `torchrun` started, or this one alone.

Every rank runs the same program on its own batches. Partial sums are exchanged and added in one
fixed order, so all ranks get the same result, and the same as a single process.
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
    """This process's rank in the process group.

    Attributes:
        rank: counted from 0.
        size: number of ranks.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and messages."""
        return self.rank == 0

    def own(self, items: Sequence[Item]) -> list[Item]:
        """This rank's share: every `size`-th item."""
        return list(items[self.rank :: self.size])

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks, equal in shape and type, in rank order."""
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
        """Broadcast the first rank's tensor, in place."""
        if self.size > 1:
            distributed.broadcast(tensor, src=0)
        return tensor

    def agree(self, value: str, otherwise: str) -> None:
        """Check that all ranks have the same value.

        Raises:
            InputError: they do not; its message is `otherwise`.
        """
        digest = torch.tensor(list(hashlib.sha256(value.encode()).digest()))
        if any(not torch.equal(part, digest) for part in self.gather(digest)):
            raise InputError(otherwise)

    def leave(self) -> None:
        """Leave the process group: no rank waits for this one any more."""
        if self.size > 1:
            distributed.destroy_process_group()


def own_gpus() -> list[int]:
    """This rank's GPUs, its default one first: an equal share of the machine's, or all."""
    count = torch.cuda.device_count()
    if not is_launched():
        first = torch.cuda.current_device()
        return [first, *(gpu for gpu in range(count) if gpu != first)]
    share = max(1, count // int(os.environ["LOCAL_WORLD_SIZE"]))
    first = int(os.environ["LOCAL_RANK"]) * share % count
    return list(range(first, first + share))


@cache
def joined() -> Ranks:
    """Join the process group, once per process; a single rank if `torchrun` did not start it.

    GPUs communicate by NCCL, each rank on its own GPUs (`own_gpus`), CPUs by Gloo.
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

    When one of them fails, the others are stopped.

    Returns:
        The exit code of the first rank that failed (and printed why), or 0.

    Raises:
        PruneflowError: a rank was killed.
    """
    # Each rank uses its share of the cores, and writes to the terminal directly.
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
            "were stopped: finished rounds are kept, run again to continue"
        ) from None
    return 0
