"""Notices what makes a training slower than its device could be."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from trainer_service.recipes.config import Training

LEAST_SECONDS = 30.0
LARGE_SHARE = 0.3

T = TypeVar("T")


class Waiting:
    """How much of its time a training waits for its data; said once."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._began: float | None = None
        self._said = False

    def feed(self, work: Iterable[T]) -> Iterator[T]:
        """Yields the items and measures the time until each is there, from the second on."""
        since = 0.0
        for item in work:
            now = time.monotonic()
            if self._began is None:
                self._began = now
            else:
                self._waited += now - since
            yield item
            since = time.monotonic()

    def too_long(self) -> str:
        """What to say when training waits for a large part of its time, else nothing."""
        if self._said or self._began is None:
            return ""
        seconds = time.monotonic() - self._began
        if seconds < LEAST_SECONDS or self._waited < LARGE_SHARE * seconds:
            return ""
        self._said = True
        return f"training is slow: it waits {self._waited / seconds:.0%} of its time for the data to be prepared"


def computes_slowly(device: torch.device, training: Training) -> str:
    """Why a CPU computes more slowly than it could, empty when it does not."""
    if device.type != "cpu" or training.bf16:
        return ""
    if torch.cpu.get_capabilities().get("amx_bf16"):
        return "training in float32 is slow on this CPU, which multiplies bfloat16 several times as fast"
    return ""
