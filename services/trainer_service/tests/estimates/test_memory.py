"""Memory of a training against the documents' tables and against what PyTorch really keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modelkit import forwarding
from services.trainer_service.tests.estimates import shapes
from services.trainer_service.tests.estimates.shapes import Blueprint
from trainer_service.estimates import memory as estimates
from trainer_service.estimates.memory import Memory, Setting, memory, trained_tensors
from trainer_service.estimates.optimizers import gradient_bytes, state_bytes
from trainer_service.recipes.adapters import add_adapter
from trainer_service.recipes.config import Finetune, LanguageModel, Lora, Quantization, Training

GB = 10**9
SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
}


def finetune(method: str, *, training: Training | None = None, **parameters: Any) -> Finetune:
    return Finetune("m", "language_model", training or Training(), LanguageModel(method=method, **parameters))


def table(method: str, blueprint: Blueprint) -> Memory:
    """As the tables of the documents have it: short rows, one at a time, blocks computed twice, bfloat16."""
    training = Training(per_device_train_batch_size=1, bf16=True, gradient_checkpointing=True)
    lora = Lora(target_modules=("q_proj", "v_proj"))
    return memory(blueprint.shape(), finetune(method, training=training, lora=lora), Setting("cuda", 1, 512))


@pytest.mark.parametrize(
    ("config", "parameters", "full", "lora", "qlora"),
    [
        (shapes.LLAMA_7B, 6_738_415_616, 28, 16, 6),
        (shapes.LLAMA_13B, 13_015_864_320, 52, 32, 10),
        (shapes.LLAMA_70B, 68_976_648_192, 280, 160, 48),
    ],
)
def test_memory_of_the_training_guide(
    config: dict[str, Any], parameters: int, full: float, lora: float, qlora: float
) -> None:
    """T20. LoRA and QLoRA within a quarter of the guide's figures. For full training the guide names the least, 4 bytes
    a weight; trained in float32 with AdamW a weight takes 16 bytes, and 2 more for its copy in bfloat16."""
    blueprint = Blueprint("llama", config)
    assert blueprint.shape().parameters == parameters
    assert table("LORA", blueprint).total / GB == pytest.approx(lora, rel=0.25)
    assert table("QLORA", blueprint).total / GB == pytest.approx(qlora, rel=0.25)
    assert full <= table("FULL", blueprint).total / GB <= full * 5


@pytest.mark.parametrize(
    ("family", "config", "lora"),
    [
        ("qwen2", shapes.QWEN2_HALF_B, 4),
        ("qwen2", shapes.QWEN2_3B, 8),
        ("llama", shapes.LLAMA_7B, 16),
        ("qwen2", shapes.QWEN2_14B, 32),
    ],
)
def test_memory_of_the_studio(family: str, config: dict[str, Any], lora: float) -> None:
    """M1, M3, F21: LoRA in no more than a tenth above what the documents name for each class, QLoRA in half of it."""
    blueprint = Blueprint(family, config)
    assert table("LORA", blueprint).total <= 1.1 * lora * GB
    assert table("QLORA", blueprint).total <= 1.1 * max(4.0, 0.5 * lora) * GB


def test_ways_to_save_memory_save_memory() -> None:
    """F29, T25, T27: each of the remedies that a failure names lowers the estimate."""
    shape = Blueprint("llama", shapes.LLAMA_7B).shape()

    def total(method: str = "LORA", length: int = 2048, optim: str = "adamw_torch", **training: Any) -> int:
        job = finetune(method, training=Training(optim=optim, bf16=True, **training), max_seq_length=length)
        return memory(shape, job, Setting()).total

    usual = total(per_device_train_batch_size=8)
    assert total(per_device_train_batch_size=4) < usual
    assert total(per_device_train_batch_size=8, gradient_checkpointing=True) < 0.5 * usual
    assert total(per_device_train_batch_size=8, length=1024) < 0.6 * usual
    assert total("QLORA", per_device_train_batch_size=8) < usual < total("FULL", per_device_train_batch_size=8)
    assert total("FULL", optim="adamw_8bit") < total("FULL")
    double = Quantization(double_quant=True)
    qlora = (
        finetune("QLORA"),
        finetune("QLORA", quantization=double),
        finetune("QLORA", quantization=Quantization("int8")),
    )
    plain, doubly, eight = (memory(shape, job, Setting()).weights for job in qlora)
    assert doubly < plain < eight < memory(shape, finetune("LORA"), Setting()).weights


def test_several_devices() -> None:
    """F28: sharded over four GPUs each holds a quarter; four processes on one CPU hold four times as much."""
    shape = Blueprint("llama", shapes.LLAMA_7B).shape()
    one = memory(shape, finetune("FULL"), Setting("cuda", 1))
    sharded = memory(shape, finetune("FULL", training=Training(parallelism="FULLY_SHARDED")), Setting("cuda", 4))
    assert (sharded.weights, sharded.optimizer) == (one.weights // 4, one.optimizer // 4)
    assert memory(shape, finetune("FULL"), Setting("cuda", 4)) == one
    assert memory(shape, finetune("FULL"), Setting("cpu", 4)).weights == 4 * one.weights


def test_adapters_are_where_they_are_asked_for() -> None:
    shape = Blueprint("llama", SMALL | {"num_hidden_layers": 2}).shape()

    def adapted(*targets: str) -> int:
        return len(trained_tensors(shape, LanguageModel(lora=Lora(target_modules=targets)))) // 2

    assert adapted() == 2 * 7
    assert adapted("q_proj", "v_proj") == 2 * 2
    assert adapted("self_attn.o_proj") == 2
    assert adapted("embed_tokens", "lm_head") == 2
    assert adapted("proj") == 0


def test_logits_are_those_of_the_recipe() -> None:
    """What the loss holds at once is said in two places, because the service never loads what the recipe needs."""
    assert estimates.LOGITS_AT_ONCE == forwarding.CHUNK_LOGITS
    assert estimates.LEAST_LOGIT_TOKENS == forwarding.LEAST_CHUNK


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "glm4", "gemma", "phi", "phi3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["FULL", "LORA"])
def test_trained_weights_gradients_and_optimiser_state(family: str, method: str) -> None:
    """T20: adapters, gradients and AdamW's state are counted exactly, for every family."""
    blueprint = Blueprint(family, SMALL | {"num_hidden_layers": 2})
    model = blueprint.model()
    if method == "LORA":
        model = add_adapter(model, Lora(), base_model=Path("m"))
    tensors = trained_tensors(blueprint.shape("float32"), LanguageModel(method=method))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert gradient_bytes("adamw_torch", tensors) == sum(item.grad.nbytes for item in trained)
    assert state_bytes("adamw_torch", tensors) == sum(moment.nbytes for moment in moments)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "half", "dropout"),
    [("FULL", False, 0.0), ("FULL", True, 0.0), ("LORA", False, 0.05), ("LORA", True, 0.0)],
)
def test_activations_are_what_the_blocks_keep(family: str, method: str, half: bool, dropout: float) -> None:
    """T20: within an eighth of the bytes that autograd keeps, all tensors counted once and weights left out."""
    batch, length = 4, 64
    kept = {}
    for layers in (1, 2):
        model = Blueprint(family, SMALL | {"num_hidden_layers": layers}).model(
            dtype=torch.bfloat16 if half and method == "LORA" else torch.float32
        )
        if method == "LORA":
            model = add_adapter(model, Lora(dropout=dropout), base_model=Path("m"))
        model.train()
        kept[layers] = kept_bytes(model, torch.ones(batch, length, dtype=torch.long), half=half)
    predicted = {}
    for layers in (1, 2):
        shape = Blueprint(family, SMALL | {"num_hidden_layers": layers}).shape("float32")
        training = Training(per_device_train_batch_size=batch, bf16=half)
        job = finetune(method, training=training, lora=Lora(dropout=dropout))
        predicted[layers] = memory(shape, job, Setting("cpu", 1, length)).activations
    assert predicted[2] - predicted[1] == pytest.approx(kept[2] - kept[1], rel=1 / 8)


def kept_bytes(model: Any, ids: torch.Tensor, *, half: bool) -> int:
    """Bytes that a forward pass keeps for the backward pass, without weights and their copies in half precision."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    sizes = {tuple(tensor.shape) for tensor in model.parameters() if tensor.ndim == 2}
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        copied = half and (
            tuple(tensor.shape) in sizes or tuple(tensor.t().shape) in sizes if tensor.ndim == 2 else False
        )
        if storage.data_ptr() not in weights and not copied:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        model(input_ids=ids, use_cache=False)
    return sum(kept.values())
