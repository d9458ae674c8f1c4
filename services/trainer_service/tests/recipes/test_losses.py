"""Sequences end to end cost what they cost one by one, and chunks what the whole costs (T27)."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Gemma2Config, MistralConfig

from modelkit import forwarding
from modelkit.attention import isolates, use_segments
from modelkit.chat import IGNORED, Encoded
from modelkit.collation import collate
from modelkit.loading import load_model
from modelkit.scratch import FAMILIES
from trainer_service.recipes.losses import ClassLoss, TokenLoss, evaluate, linear_cross_entropy
from trainer_service.recipes.precision import Precision

from .conftest import CPU

SMALL: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
FULL = Precision(torch.float32, torch.float32, torch.float32)


def sequences(*lengths: int, classes: int = 0) -> list[Encoded]:
    """Random sequences of these lengths; of each the later part has labels."""
    chance = np.random.default_rng(0)
    found = []
    for length in lengths:
        ids = chance.integers(10, 300, length).astype(np.int32)
        labels = ids.copy()
        labels[: length // 3] = IGNORED
        found.append(Encoded(ids, labels, truncated=False, label=int(chance.integers(classes)) if classes else -1))
    return found


def gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    """Those of all trained weights."""
    model.zero_grad()
    loss.backward()
    return [weight.grad for weight in model.parameters() if weight.requires_grad and weight.grad is not None]


def reference(model: Any, rows: list[Encoded]) -> torch.Tensor:
    """The loss that transformers computes, summed over sequences that are read one by one."""
    total = torch.zeros(())
    for row in rows:
        logits = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0, :-1]
        wanted = torch.from_numpy(row.labels[1:].astype(np.int64))
        total = total + functional.cross_entropy(logits.float(), wanted, ignore_index=IGNORED, reduction="sum")
    return total


def require_equal(make: Callable[[], Any], *, checkpointed: bool = False) -> None:
    """End to end and padded, a model has the losses and gradients that it has one sequence at a time."""
    rows = sequences(70, 3, 41, 2, 23)
    plain, ours = make(), make()
    use_segments(ours)
    if checkpointed:
        ours.activation_checkpointing_enable({"use_reentrant": False})
    ours.train()
    whole = reference(plain, rows)
    expected = gradients(plain, whole)
    objective = TokenLoss(ours)
    for end_to_end in (False, True) if isolates(ours.config.model_type) else (False,):
        loss = objective(collate(rows, 0, end_to_end=end_to_end))
        torch.testing.assert_close(loss, whole, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(gradients(ours, loss), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_every_family_keeps_sequences_apart(tiny_models: dict[str, Path], family: str, checkpointed: bool) -> None:
    require_equal(lambda: load_model(tiny_models[family], dtype=torch.float32), checkpointed=checkpointed)


def made_from(config: Any) -> Any:
    """A model with weights so large that what a token sees makes a difference."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "self_attn" in name:
                weight.mul_(10)
    return model


def test_a_sliding_window_stays_within_its_sequence() -> None:
    config = MistralConfig(**SMALL, sliding_window=9)
    assert isolates(config.model_type)
    require_equal(lambda: made_from(config))


def test_a_model_that_does_more_than_a_linear_layer_takes_its_own_way() -> None:
    """Gemma 2 caps its logits and its attention scores."""
    config = Gemma2Config(**SMALL, final_logit_softcapping=2.0, query_pre_attn_scalar=8)
    assert not isolates(config.model_type)
    require_equal(lambda: made_from(config))


def test_long_sequences_are_attended_to_in_the_format_of_the_job() -> None:
    rows = sequences(400, 90)
    config = MistralConfig(**SMALL)
    plain, ours = made_from(config), made_from(config)
    use_segments(ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = TokenLoss(ours)(collate(rows, 0, end_to_end=True))
    assert float(loss.detach()) == pytest.approx(float(reference(plain, rows).detach()), rel=2e-3)


@pytest.mark.parametrize("bias", [False, True])
def test_a_loss_in_chunks_is_the_loss_of_the_whole(monkeypatch: pytest.MonkeyPatch, bias: bool) -> None:
    monkeypatch.setattr(forwarding, "CHUNK_LOGITS", {"cpu": 0})
    monkeypatch.setattr(forwarding, "LEAST_CHUNK", 7)
    torch.manual_seed(0)
    head, hidden = nn.Linear(8, 50, bias=bias), torch.randn(33, 8, requires_grad=True)
    targets = torch.randint(50, (33,))
    whole = functional.cross_entropy(head(hidden), targets, reduction="sum") / 33
    expected = torch.autograd.grad(whole, [hidden, *head.parameters()])
    chunked = linear_cross_entropy(hidden, head, targets) / 33
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(torch.autograd.grad(chunked, [hidden, *head.parameters()]), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within PEFT
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj"]])
def test_an_adapter_on_the_output_layer_learns_as_in_peft(tied: bool, targets: list[str]) -> None:
    config = MistralConfig(**SMALL, tie_word_embeddings=tied)
    rows = sequences(20, 11)
    found = []
    for ours in (False, True):
        torch.manual_seed(1)
        lora = LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(made_from(config), lora)
        loss = TokenLoss(model)(collate(rows, 0)) if ours else reference(model, rows)
        found.append((loss.detach(), gradients(model, loss)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_a_batch_without_labels_costs_nothing_and_reaches_every_weight() -> None:
    model = made_from(MistralConfig(**SMALL))
    loss = TokenLoss(model)(collate([], 0, end_to_end=True))
    assert float(loss.detach()) == 0
    assert len(gradients(model, loss)) == len(list(model.parameters()))


def classifier() -> Any:
    torch.manual_seed(0)
    config = MistralConfig(**SMALL, num_labels=3, pad_token_id=0)
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize("end_to_end", [False, True])
def test_a_class_is_told_from_the_last_token_of_its_sequence(end_to_end: bool) -> None:
    rows = sequences(30, 4, 17, 9, classes=3)
    plain, ours = classifier(), classifier()
    use_segments(ours)
    ids = [torch.from_numpy(row.input_ids.astype(np.int64))[None] for row in rows]
    logits = torch.cat([plain(input_ids=one).logits for one in ids])
    whole = functional.cross_entropy(logits, torch.tensor([row.label for row in rows]), reduction="sum")
    batch = collate(rows, 0, end_to_end=end_to_end)
    objective = ClassLoss(ours)
    torch.testing.assert_close(objective.logits(batch), logits, rtol=1e-4, atol=1e-5)
    loss = objective(batch)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(gradients(ours, loss), gradients(plain, whole), rtol=1e-3, atol=1e-5)


def test_evaluation_is_the_mean_over_all_labels_however_they_are_put_together() -> None:
    rows = sequences(30, 4, 17, 9, 2)
    model = made_from(MistralConfig(**SMALL))
    use_segments(model)
    labelled = sum(int((row.labels[1:] != IGNORED).sum()) for row in rows)
    expected = float(reference(model, rows).detach()) / labelled
    apart = [collate([row], 0) for row in rows]
    together = [collate(rows[:3], 0, end_to_end=True), collate(rows[3:], 0)]
    for batches in (apart, together):
        found = evaluate(TokenLoss(model), batches, FULL, CPU)
        assert found.loss == pytest.approx(expected, rel=1e-5)
        assert found.extra == {}
    assert model.training


def test_classes_are_evaluated_by_accuracy_and_f1() -> None:
    class Fixed(ClassLoss):
        def logits(self, batch: Any) -> torch.Tensor:
            return 9.0 * functional.one_hot(batch.input_ids[:, 0] - 1, 3)  # the first token tells the answer

    def row(actual: int, taken: int) -> Encoded:
        ids = np.array([taken + 1, 5], np.int32)
        return Encoded(ids, np.full_like(ids, IGNORED), truncated=False, label=actual)

    rows = [row(0, 0), row(0, 0), row(0, 1), row(1, 1), row(1, 0)]
    found = evaluate(Fixed(classifier()), [collate(rows[:2], 0), collate(rows[2:], 0)], FULL, CPU)
    assert found.extra["eval_accuracy"] == pytest.approx(3 / 5)
    assert found.extra["eval_f1"] == pytest.approx((2 * 2 / 6 + 2 * 1 / 4) / 2)
    wrong = torch.tensor(9.0).exp().add(2).log()
    assert found.loss == pytest.approx(float((5 * wrong - 3 * 9.0) / 5), rel=1e-5)
