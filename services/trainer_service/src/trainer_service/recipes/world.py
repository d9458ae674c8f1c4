"""The data-parallel processes of a job, seen from one of them. With one process every exchange is a no-op."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from trainer_service.recipes.ranks import RENDEZVOUS
from trainer_service.recipes.sharding import is_sharded, shard

TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True, slots=True)
class World:
    """rank of size processes; all of them train on devices of one kind."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls) -> "World":
        """Takes this process's place as RANK, LOCAL_RANK and WORLD_SIZE say, which torchrun and `ranks` set."""
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        device = torch.device("cpu")
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if size > 1:
            backend = "nccl" if device.type == "cuda" else "gloo"
            address = os.environ.get(RENDEZVOUS, "env://")
            dist.init_process_group(backend, init_method=address, rank=rank, world_size=size, timeout=TIMEOUT)
            if device.type == "cpu":
                torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // size))
        return cls(rank, size, device)

    def leave(self) -> None:
        """Ends the exchange with the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        """This process speaks for all: it writes events and files."""
        return self.rank == 0

    def parallel(self, model: nn.Module, parallelism: str = "DATA") -> nn.Module:
        """The model with gradients averaged over all processes; FULLY_SHARDED spreads its weights, in place.

        Optimisers are made after this.
        """
        if self.size == 1:
            return model
        if parallelism == "FULLY_SHARDED":
            return shard(model, self.device, self.size)
        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            model,
            device_ids=devices,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=False,
        )

    def accumulating(self, model: Any, more: bool) -> AbstractContextManager[Any]:
        """While more micro-batches of the step follow, gradients stay in this process."""
        if is_sharded(model):
            model.set_requires_gradient_sync(not more)
        return model.no_sync() if more and isinstance(model, DistributedDataParallel) else nullcontext()

    def forwards(self, model: nn.Module, own: int) -> int:
        """Forward passes that this process does for so many of its own: of a spread model all do as many."""
        if not is_sharded(model):
            return own
        return max(int(count) for count in self.gather(torch.tensor(own)))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Adds up numbers over all processes; every process gets the sums, exact for whole numbers below 2**53."""
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all processes, which have equal shapes, in the order of rank."""
        if self.size == 1:
            return [values]
        own = values.to(self.device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return [tensor.to(values.device) for tensor in found]

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self.size > 1:
            dist.barrier()
