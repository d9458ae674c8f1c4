"""The state of the random generators (dropout), saved and restored for each process of a job."""

from typing import Any

import torch

from trainer_service.recipes.world import World


def seed(value: int) -> None:
    """Seeds PyTorch on every device."""
    torch.manual_seed(value)


def capture(world: World) -> dict[str, list[torch.Tensor]]:
    """The generators of all processes, in the order of rank."""
    states = {"cpu": world.gather(torch.get_rng_state())}
    if world.device.type == "cuda":
        states["cuda"] = world.gather(torch.cuda.get_rng_state(world.device))
    return states


def restore(states: Any, world: World) -> bool:
    """Sets this process's generators; False when the states are of another number or kind of processes."""
    kinds = {"cpu", "cuda"} if world.device.type == "cuda" else {"cpu"}
    if set(states) != kinds or any(len(states[kind]) != world.size for kind in kinds):
        return False
    torch.set_rng_state(states["cpu"][world.rank])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"][world.rank], world.device)
    return True
