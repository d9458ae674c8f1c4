"""Optimisers and schedules by all their names (C17, C18), each learning and going on from a checkpoint exactly."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import optimization

from modelkit import scratch
from modelkit.loading import load_model
from trainer_service.recipes import low_rank_gradients
from trainer_service.recipes.config import Training
from trainer_service.recipes.optimizers import Optimisation, create_optimizer, notes
from trainer_service.recipes.precision import Precision
from trainer_service.recipes.schedules import Schedule
from trainer_service.recipes.support import OPTIMIZER_ALIASES, OPTIMIZERS, SCHEDULERS

from .conftest import JobFactory, run

FLOAT32 = Precision(torch.float32, torch.float32, torch.float32)
CPU = torch.device("cpu")
DOCUMENTED_OPTIMIZERS = (
    "adamw_torch adamw_torch_fused adamw_8bit adamw_bnb_8bit adafactor lomo galore_adamw galore_adamw_8bit grokadamw "
    "stableadamw schedule_free_radamw sgd adagrad rmsprop"
)
DOCUMENTED_SCHEDULERS = (
    "linear cosine cosine_with_restarts polynomial constant constant_with_warmup inverse_sqrt reduce_lr_on_plateau "
    "cosine_with_min_lr warmup_stable_decay"
)


def small_model() -> nn.Sequential:
    """Wide enough for states of 8 bits and for projected gradients."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 144), nn.Tanh(), nn.Linear(144, 160), nn.Tanh(), nn.Linear(160, 4))


def train(model: nn.Module, optimisation: Optimisation, steps: int, *, first: int = 0) -> list[float]:
    losses = []
    for step in range(first, first + steps):
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs[:, :4].sin()).square().mean()
        optimisation.backward(loss)
        optimisation.step()
        losses.append(loss.item())
    return losses


def through_a_file(state: Any) -> Any:
    """As a checkpoint does: tensors and plain values pass, nothing else."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_documented_name_is_there() -> None:
    assert set(DOCUMENTED_OPTIMIZERS.split()) < set(OPTIMIZERS)
    assert set(DOCUMENTED_SCHEDULERS.split()) == set(SCHEDULERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_paging_that_a_cpu_does_not_have_is_told_of(name: str) -> None:
    training = Training(optim=name)
    assert notes(training, torch.device("cuda")) == []
    told = notes(training, CPU)
    assert bool(told) == name.startswith("paged")
    assert all(f"{name} needs a GPU to page its state from; it trains as" in note for note in told)


def test_a_training_logs_what_its_optimizer_cannot_do(jobs: JobFactory) -> None:
    """C17."""
    text = run(jobs(training={"optim": "paged_adamw", "max_steps": 1})).text()
    assert "paged_adamw needs a GPU to page its state from" in text


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_learns_and_goes_on_from_its_state(name: str) -> None:
    training = Training(optim=name, learning_rate=2e-2 if name in ("lomo", "sgd") else 3e-3, weight_decay=0.01)

    def begin() -> tuple[nn.Sequential, Optimisation]:
        model = small_model()
        return model, Optimisation(model, training, FLOAT32, CPU, total_steps=1000)

    model, optimisation = begin()
    first = train(model, optimisation, 12)
    assert first[-1] < first[0]
    with optimisation.settled():
        weights = through_a_file(model.state_dict())
        states = {name: through_a_file(part.state_dict()) for name, part in optimisation.parts.items()}
    rest = train(model, optimisation, 4, first=12)

    resumed, going_on = begin()
    resumed.load_state_dict(weights)
    for part, state in states.items():
        going_on.parts[part].load_state_dict(state)
    assert train(resumed, going_on, 4, first=12) == rest
    with optimisation.settled(), going_on.settled():
        pairs = zip(resumed.parameters(), model.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_norms_and_biases_are_not_decayed(name: str) -> None:
    groups = create_optimizer(small_model(), Training(optim=name, weight_decay=0.01)).param_groups
    decays = {id(weight): group["weight_decay"] for group in groups for weight in group["params"]}
    assert sorted(decays.values()) == [0.0] * 3 + [0.01] * 3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_a_language_model(jobs: JobFactory, name: str) -> None:
    rate = 0.3 if name in ("lomo", "sgd") else 1e-2
    events = run(
        jobs(
            training={"optim": name, "learning_rate": rate, "max_steps": 10, "lr_scheduler_type": "constant"},
            language_model={"method": "METHOD_FULL"},
        )
    )
    curve = events.curve()
    assert min(curve[9], curve[10]) < curve[1]
    assert all(norm > 0 for norm in events.curve("grad_norm").values())


@pytest.mark.parametrize("name", sorted({OPTIMIZER_ALIASES.get(name, name) for name in OPTIMIZERS}))
def test_a_killed_job_goes_on_as_if_nothing_had_happened(jobs: JobFactory, name: str) -> None:
    """With evaluations between, for which some optimisers put other weights into place."""
    content: dict[str, Any] = {
        "training": {
            "optim": name,
            "max_steps": 8,
            "save_strategy": "INTERVAL_STRATEGY_STEPS",
            "save_steps": 4,
            "eval_strategy": "INTERVAL_STRATEGY_STEPS",
            "eval_steps": 3,
            "gradient_checkpointing": True,
            "learning_rate": 0.3 if name in ("lomo", "sgd") else 1e-2,
        },
        "language_model": {"method": "METHOD_FULL", "eval_ratio": 0.2},
    }
    whole_job, killed_job = jobs(**content), jobs(**content)
    whole = run(whole_job)

    def die(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed_job, die)
    resumed_job = jobs(**content, resume_from=str(killed_job.checkpoints / "checkpoint-4"))
    resumed = run(resumed_job)
    for metric in ("loss", "eval_loss", "learning_rate"):
        assert resumed.curve(metric) == {step: value for step, value in whole.curve(metric).items() if step > 4}
    one, other = (load_file(job.output_dir / "model.safetensors") for job in (whole_job, resumed_job))
    assert all(torch.equal(one[tensor], other[tensor]) for tensor in one | other)


def test_adam_takes_its_parameters() -> None:
    group = create_optimizer(small_model(), Training(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-5)).param_groups[
        0
    ]
    assert (group["betas"], group["eps"]) == ((0.8, 0.95), 1e-5)


def test_a_scaled_loss_takes_the_same_steps_and_leaves_out_those_that_overflow() -> None:
    """C22: what float16 needs, on a processor."""
    training = Training(optim="sgd", learning_rate=1e-2, lr_scheduler_type="constant")
    half = Precision(torch.float32, torch.float16, torch.float32)
    curves = []
    for formats in (FLOAT32, half):
        model = small_model()
        optimisation = Optimisation(model, training, formats, CPU, total_steps=9)
        curves.append(train(model, optimisation, 8))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    before = [weight.clone() for weight in model.parameters()]
    optimisation.backward(model(torch.ones(2, 8)).sum() * torch.inf)
    norm, _ = optimisation.step()
    assert not torch.isfinite(norm)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_lomo_takes_the_steps_of_clipped_sgd(clip: float) -> None:
    model, reference = small_model(), small_model()
    training = Training(optim="lomo", learning_rate=0.1, max_grad_norm=clip, lr_scheduler_type="constant")
    optimisation = Optimisation(model, training, FLOAT32, CPU, total_steps=10)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(5):
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        optimisation.backward((model(inputs)).square().mean())
        norm, _ = optimisation.step()
        reference(inputs).square().mean().backward()
        expected = nn.utils.clip_grad_norm_(reference.parameters(), clip or math.inf)
        plain.step()
        plain.zero_grad()
        assert float(norm) == pytest.approx(float(expected), rel=1e-5)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        assert one.grad is None


def test_galore_with_a_full_rank_takes_the_steps_of_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    """Projected onto all directions and back, a first update has the direction of the rotated gradient's sign."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 4))
    gradient = torch.randn(6, 4)
    optimizer = low_rank_gradients.GaLoreAdamW([{"params": [weight], "rank": 4, "weight_decay": 0.0}], lr=0.1)
    before = weight.detach().clone()
    weight.grad = gradient.clone()
    optimizer.step()
    right = torch.linalg.svd(gradient, full_matrices=False)[2]
    expected = before - 0.1 * low_rank_gradients.SCALE * torch.sign(gradient @ right.T) @ right
    assert torch.allclose(weight, expected, atol=1e-4)


def test_galore_leaves_the_vocabulary_whole(tmp_path: Path) -> None:
    corpus = [Path(json.__file__).read_text()]
    built = scratch.build(tmp_path / "m", hidden_size=192, layers=1, vocab_size=320, corpus=corpus)
    model = load_model(built.directory, dtype=torch.float32)
    groups = create_optimizer(model, Training(optim="galore_adamw")).param_groups
    projected = [weight for group in groups if "rank" in group for weight in group["params"]]
    assert any(weight is model.model.layers[0].mlp.up_proj.weight for weight in projected)
    assert not any(weight is model.lm_head.weight for weight in projected)


def test_galore_keeps_small_moments() -> None:
    model = small_model()
    optimisation = Optimisation(model, Training(optim="galore_adamw"), FLOAT32, CPU, total_steps=10)
    train(model, optimisation, 2)
    weight = model[2].weight
    assert weight.shape == (160, 144)
    assert optimisation.parts["optimizer"].state[weight]["exp_avg"].shape == (160, low_rank_gradients.RANK)


def test_galore_leaves_it_to_the_loop_to_notice_gradients_that_are_no_numbers() -> None:
    model = nn.Linear(300, 200, bias=False)
    optimisation = Optimisation(model, Training(optim="galore_adamw"), FLOAT32, CPU, total_steps=10)
    optimisation.backward(model(torch.full((1, 300), math.nan)).sum())
    norm, _ = optimisation.step()
    assert math.isnan(norm)


def test_schedule_free_weights_differ_from_those_in_training() -> None:
    model = small_model()
    optimisation = Optimisation(model, Training(optim="schedule_free_radam", learning_rate=0.1), FLOAT32, CPU,
                                total_steps=20)  # fmt: skip
    train(model, optimisation, 12)
    trained = [weight.detach().clone() for weight in model.parameters()]
    with optimisation.settled():
        assert not all(torch.equal(one, other) for one, other in zip(trained, model.parameters(), strict=True))
    for one, other in zip(trained, model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


TOTAL, WARMUP, RATE = 20, 3, 0.1
Make = Callable[..., Any]
CURVES: dict[str, tuple[Training, Callable[[torch.optim.Optimizer], Any]]] = {
    "linear": (Training(), lambda it: optimization.get_linear_schedule_with_warmup(it, WARMUP, TOTAL)),
    "cosine": (Training(), lambda it: optimization.get_cosine_schedule_with_warmup(it, WARMUP, TOTAL)),
    "cosine, two waves": (
        Training(lr_scheduler_num_cycles=2.0),
        lambda it: optimization.get_cosine_schedule_with_warmup(it, WARMUP, TOTAL, num_cycles=2.0),
    ),
    "cosine_with_restarts": (
        Training(),
        lambda it: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(it, WARMUP, TOTAL),
    ),
    "cosine_with_restarts, three": (
        Training(lr_scheduler_num_cycles=3.0),
        lambda it: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(it, WARMUP, TOTAL, num_cycles=3),
    ),
    "polynomial": (
        Training(),
        lambda it: optimization.get_polynomial_decay_schedule_with_warmup(it, WARMUP, TOTAL),
    ),
    "constant": (Training(), optimization.get_constant_schedule),
    "constant_with_warmup": (Training(), lambda it: optimization.get_constant_schedule_with_warmup(it, WARMUP)),
    "inverse_sqrt": (Training(), lambda it: optimization.get_inverse_sqrt_schedule(it, WARMUP)),
    "cosine_with_min_lr": (
        Training(),
        lambda it: optimization.get_cosine_with_min_lr_schedule_with_warmup(it, WARMUP, TOTAL, min_lr_rate=0.1),
    ),
    "cosine_with_min_lr, higher": (
        Training(min_lr_rate=0.4),
        lambda it: optimization.get_cosine_with_min_lr_schedule_with_warmup(it, WARMUP, TOTAL, min_lr_rate=0.4),
    ),
    "warmup_stable_decay": (Training(), lambda it: optimization.get_wsd_schedule(it, WARMUP, 2, TOTAL)),
}


def make_optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=RATE)


@pytest.mark.parametrize("case", CURVES)
def test_every_curve_is_that_of_transformers(case: str) -> None:
    training, make = CURVES[case]
    optimizer, theirs = make_optimizer(), make_optimizer()
    name = case.partition(",")[0]
    schedule = Schedule(optimizer, replace(training, lr_scheduler_type=name, warmup_steps=WARMUP), TOTAL)
    reference = make(theirs)
    for _ in range(TOTAL):
        assert schedule.rate == reference.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        theirs.step()
        reference.step()


def test_a_plateau_lowers_the_rate() -> None:
    optimizer = make_optimizer()
    schedule = Schedule(optimizer, Training(lr_scheduler_type="reduce_lr_on_plateau"), TOTAL)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(make_optimizer())
    for loss in [3.0, 2.0, *[2.0] * 12]:
        optimizer.step()
        schedule.step()
        schedule.evaluated(loss)
        reference.step(loss)
        assert schedule.rate == reference.get_last_lr()[0]
    assert schedule.rate == pytest.approx(RATE / 10)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("warmup", [0, 3, 30])
def test_every_schedule_continues_from_its_state(name: str, warmup: int) -> None:
    """Also when the warm-up is longer than the training."""

    def make() -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = make_optimizer()
        return optimizer, Schedule(optimizer, Training(lr_scheduler_type=name, warmup_steps=warmup), TOTAL)

    def rates(optimizer: torch.optim.Optimizer, schedule: Schedule, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(schedule.rate)
            optimizer.step()
            schedule.step()
            schedule.evaluated(1.0)
        return found

    whole = rates(*make(), TOTAL)
    optimizer, schedule = make()
    rates(optimizer, schedule, 8)
    state, optimizer_state = through_a_file(schedule.state_dict()), optimizer.state_dict()
    optimizer, schedule = make()
    optimizer.load_state_dict(optimizer_state)
    schedule.load_state_dict(state)
    assert rates(optimizer, schedule, 12) == whole[8:]
    assert 0 < max(whole) <= RATE + 1e-9
