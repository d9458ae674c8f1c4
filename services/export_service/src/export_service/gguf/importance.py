"""How much each column of a matrix matters: the mean square of what it is multiplied by, over training text.

The idea is that of llama.cpp's importance matrix; the values are computed here, with the model as it was trained.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from export_service.gguf.outline import Outline
from export_service.gguf.tensors import gguf_name
from modelkit.adapters import Adapter
from modelkit.loading import load_model
from modelkit.merging import MergePlan
from modelkit.number_formats import Floats

MAX_TOKENS = 65_536
ROW_TOKENS = 512
LEAST = 1e-10  # a column that saw nothing still counts for something


def importance(
    base: Path,
    adapter: Path | None,
    outline: Outline,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[str],
    *,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Floats]:
    """By llama.cpp's name of each matrix but the output layer, one number per column. The model is in memory meanwhile.

    tick is called for each row and may raise to end it. Raises InvalidModel, InvalidAdapter or OSError.
    """
    model = merged_model(base, adapter)
    sums: dict[str, Any] = defaultdict(float)
    count = 0
    hooks = [module.register_forward_pre_hook(_summing(name, sums)) for module, name in _matrices(model, outline)]
    with torch.inference_mode():
        for tokens in _batches(tokenizer, rows):
            tick()
            model.model(input_ids=tokens, use_cache=False)
            count += tokens.numel()
    for hook in hooks:
        hook.remove()
    return {name: np.maximum(total.numpy() / max(count, 1), LEAST).astype(np.float32) for name, total in sums.items()}


def merged_model(base: Path, adapter: Path | None, dtype: torch.dtype | None = None) -> Any:
    """The base model with the adapter's changes made, in memory; in the type it is stored in unless one is given."""
    if adapter is None:
        with MergePlan(base) as plan:
            return load_model(base, dtype=dtype or _memory_type(plan)).eval()
    with Adapter(adapter) as opened, MergePlan(base, opened) as plan:
        model: Any = load_model(base, dtype=dtype or _memory_type(plan)).eval()
        if plan.config.get("tie_word_embeddings") is False and model.config.tie_word_embeddings:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        known = dict(model.named_parameters(remove_duplicate=False))
        for name, tensor in plan.tensors.items():
            if tensor.product or tensor.stored.file.path.parent == adapter:
                parameter = known.get(name, known.get(f"model.{name}"))
                if parameter is not None:
                    parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(tensor.read())))
        return model


def _memory_type(plan: MergePlan) -> torch.dtype:
    return torch.bfloat16 if any(tensor.dtype in ("F16", "BF16") for tensor in plan.tensors.values()) else torch.float32


def _matrices(model: Any, outline: Outline) -> Iterator[tuple[nn.Module, str]]:
    for name, module in model.named_modules():
        known = gguf_name(f"{name}.weight", outline) if isinstance(module, nn.Linear) else None
        if known and known != "output.weight":
            yield module, known


def _summing(name: str, sums: dict[str, Any]) -> Any:
    def add(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].reshape(-1, inputs[0].shape[-1]).double()
        sums[name] = sums[name] + values.square().sum(0)

    return add


def _batches(tokenizer: PreTrainedTokenizerBase, rows: Sequence[str]) -> Iterator[torch.Tensor]:
    """Rows as token numbers, (1, tokens), until there are enough."""
    total = 0
    encode: Any = tokenizer
    for row in rows:
        numbers = encode(row, truncation=True, max_length=ROW_TOKENS)["input_ids"]
        if numbers:
            yield torch.tensor([numbers])
            total += len(numbers)
        if total >= MAX_TOKENS:
            return
