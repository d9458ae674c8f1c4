"""What models in Hugging Face form answer: the trained one, and a merged one that is to compute the same."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelkit.adapters import Adapter
from modelkit.loading import load_model

REPLY_TOKENS = 12
MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
SHARE = 0.8
Tick = Callable[[], None]
Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Readings:
    """What a model makes of token sequences. loss is the mean over all tokens; logits are those of the positions from
    which each reply was written, (replies, tokens, vocabulary)."""

    loss: float
    logits: Logits


def compute_type(parameters: int) -> torch.dtype:
    """float32, or bfloat16 for a model that would take too much of the memory that is free."""
    free = int(MEMORY.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    with suppress(OSError, ValueError):  # without a limit memory.max is a word
        limit, used = (int((GROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, limit - used)
    return torch.float32 if 4 * parameters <= SHARE * free else torch.bfloat16


def adapted_model(base: Path, adapter: Path | None, dtype: torch.dtype = torch.float32) -> Any:
    """The base model with the adapter on it, not merged, by PEFT. Raises InvalidModel, InvalidAdapter."""
    labels = None
    if adapter is not None:
        with Adapter(adapter) as opened:
            labels = opened.labels or None
    model: Any = load_model(base, dtype=dtype, labels=labels)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():  # PEFT asks transformers for what it has under other names now
            warnings.simplefilter("ignore", FutureWarning)
            model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval()


def replies(model: Any, prompts: Sequence[Sequence[int]], tick: Tick = lambda: None) -> list[list[int]]:
    """Each prompt with the tokens that the model continues it with when it always takes the likeliest.

    tick is called for each token and may raise to end it.
    """
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            answer = model(input_ids=torch.tensor([prompt]), use_cache=True)
            tokens = [*prompt]
            for _ in range(REPLY_TOKENS):
                tick()
                tokens.append(int(answer.logits[0, -1].argmax()))
                answer = model(
                    input_ids=torch.tensor([tokens[-1:]]), past_key_values=answer.past_key_values, use_cache=True
                )
            found.append(tokens)
    return found


def read(model: Any, sequences: Sequence[Sequence[int]], tick: Tick = lambda: None) -> Readings:
    """What a language model makes of sequences that end with a reply; tick as in replies, for each sequence."""
    losses, kept = [], []
    with torch.inference_mode():
        for sequence in sequences:
            tick()
            tokens = torch.tensor([sequence])
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none"))
            kept.append(logits[-REPLY_TOKENS:].numpy())
    return Readings(float(torch.cat(losses).mean()), np.stack(kept))


def read_classes(model: Any, sequences: Sequence[Sequence[int]], tick: Tick = lambda: None) -> Readings:
    """What a classifier makes of sequences; there is no loss. tick as in read."""
    logits = []
    with torch.inference_mode():
        for sequence in sequences:
            tick()
            logits.append(model(input_ids=torch.tensor([sequence])).logits.float().numpy())
    return Readings(0.0, np.stack(logits))
