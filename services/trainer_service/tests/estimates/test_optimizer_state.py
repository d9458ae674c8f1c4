"""What optimisers keep, against the optimisers themselves."""

import pytest
import torch

from trainer_service.estimates.optimizers import gradient_bytes, state_bytes
from trainer_service.recipes.config import Training
from trainer_service.recipes.optimizers import create_optimizer
from trainer_service.recipes.support import OPTIMIZERS

GPU_ONLY = {"galore_adamw_8bit"}
SHAPES = [(512, 320), (512,), (300, 512), (300,)]


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in GPU_ONLY])
def test_state_of_every_optimiser(name: str) -> None:
    """T20, C17: within a twentieth of the tensors that an optimiser has after a step."""
    model = torch.nn.Sequential(torch.nn.Linear(320, 512), torch.nn.Linear(512, 300))
    assert [tuple(weight.shape) for weight in model.parameters()] == SHAPES
    optimizer = create_optimizer(model, Training(optim=name, max_grad_norm=0.0))
    loss = model(torch.ones(2, 320)).square().mean()
    if hasattr(optimizer, "fused_backward"):
        optimizer.fused_backward(loss)
    else:
        loss.backward()
    optimizer.step()
    assert state_bytes(name, SHAPES) == pytest.approx(_bytes(optimizer.state_dict()), rel=0.05, abs=64)


def _bytes(value: object) -> int:
    """Bytes of the tensors in a state; the code book of 8-bit states, which all of them share, is left out."""
    if isinstance(value, torch.Tensor):
        return 0 if value.numel() == 256 and value.dtype == torch.float32 else value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def test_one_gradient_at_a_time() -> None:
    assert gradient_bytes("lomo", SHAPES) == 4 * 320 * 512
    assert gradient_bytes("sgd", SHAPES) == 4 * (512 * 320 + 512 + 300 * 512 + 300)
