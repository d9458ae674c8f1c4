"""How fast this machine trains a model, so that the demonstration lasts minutes on any."""

import time
from pathlib import Path
from typing import Any

MEASURED = 20


def seconds_per_step(model_dir: Path, rows: int, tokens: int) -> float:
    """Time of one optimiser step on rows of so many tokens, measured on noise; the model's files stay as they are.

    The best of several steps counts, because what else the machine does just now passes.
    """
    import torch

    from modelkit.loading import load_model

    model: Any = load_model(model_dir, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = torch.randint(0, model.config.vocab_size, (rows, tokens))
    times = []
    for _ in range(MEASURED):
        started = time.perf_counter()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    return min(times)


def affordable_steps(wanted: int, seconds: float, step_seconds: float, least: int) -> int:
    """As many of the wanted steps as fit into a time, but not fewer than least."""
    return min(wanted, max(least, round(seconds / max(step_seconds, 1e-6))))
