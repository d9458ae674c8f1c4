"""Losses in tiles are those of all logits at once."""

import pytest
import torch
from torch.nn import functional

from modelkit.tiled_losses import ENTRIES, TOKENS, tiled_losses


def drawn(tokens: int, vocabulary: int, *, scale: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens + vocabulary)
    hidden = torch.randn(tokens, 16).to(dtype)
    weight = (torch.randn(vocabulary, 16) * scale).to(dtype)
    return hidden, weight, torch.randn(vocabulary).to(dtype), torch.randint(0, vocabulary, (tokens,))


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "vocabulary"), [(1, 7), (5, ENTRIES), (TOKENS + 1, 2 * ENTRIES + 1)])
def test_they_are_those_of_all_logits(tokens: int, vocabulary: int, dtype: torch.dtype, scale: float) -> None:
    hidden, weight, bias, wanted = drawn(tokens, vocabulary, scale=scale, dtype=dtype)
    for offset in (None, bias):
        logits = functional.linear(hidden, weight, offset).float()
        expected = functional.cross_entropy(logits, wanted, reduction="none")
        found = tiled_losses(hidden, weight, offset, wanted)
        # Products of other shapes may be summed in another order, so a logit may be rounded the other way.
        step = 2**-8 if dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(found, expected, atol=step * (1 + float(logits.abs().max())), rtol=1e-5)


def test_huge_logits_do_not_overflow() -> None:
    hidden, weight = torch.eye(2), torch.tensor([[3e4, -3e4], [-3e4, 3e4], [0.0, 0.0]])
    found = tiled_losses(hidden, weight, None, torch.tensor([0, 0]))
    assert found.tolist() == [0.0, 6e4]
