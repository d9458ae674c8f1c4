"""How weights are adapted: quantized bases (T19, T22, C32, C33) and low-rank adapters (C28, C30, C31, F30)."""

import ctypes
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modelkit import scratch
from modelkit.loading import load_model, quieten
from trainer_service.recipes import quantization
from trainer_service.recipes.adapters import add_adapter
from trainer_service.recipes.config import Lora, Quantization
from trainer_service.recipes.model_setup import prepare_model
from trainer_service.recipes.precision import Precision

from .conftest import CPU, JobFactory, run

QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "nf4": {"type": "nf4", "compute_dtype": "float32"},
    "nf4 twice, bfloat16": {"type": "nf4", "double_quant": True},
    "fp4": {"type": "fp4", "compute_dtype": "float16"},
    "int4": {"type": "int4"},
    "int8": {"type": "int8"},
}
M_MMAP_THRESHOLD = -3
EVERY_MODULE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within PEFT


def qlora(**quantization: Any) -> dict[str, Any]:
    return {"method": "METHOD_QLORA", "quantization": quantization, "lora": {"dropout": 0.0}}


@pytest.mark.parametrize("case", QUANTIZATIONS)
def test_adapters_on_a_quantized_model_learn_also_after_an_evaluation(jobs: JobFactory, case: str) -> None:
    """An evaluation on a CPU with AVX512-BF16 would make bitsandbytes forget the gradients of quantized layers."""
    events = run(
        jobs(
            training={
                "max_steps": 8,
                "learning_rate": 2e-2,
                "eval_strategy": "STEPS",
                "eval_steps": 3,
                "bf16": "bfloat16" in case,
                "gradient_checkpointing": "bfloat16" in case,
            },
            language_model={**qlora(**QUANTIZATIONS[case]), "eval_ratio": 0.2},
        )
    )
    curve = events.curve()
    assert curve[8] < curve[4] < curve[1]
    assert ("NF4" in events.text()) == (case == "int4")
    assert ("need a GPU" in events.text()) == (case == "fp4")
    assert "no effect on int8" not in events.text()


def test_what_int8_does_not_have_is_told_of(jobs: JobFactory) -> None:
    assert "no effect on int8" in run(jobs(language_model=qlora(type="int8", double_quant=True))).text()


def test_a_quantized_model_keeps_norms_embeddings_and_output_layer(jobs: JobFactory) -> None:
    job = jobs(language_model=qlora(type="nf4"))
    model = prepare_model(job, Precision(torch.bfloat16, torch.bfloat16, torch.float32), CPU)
    base = model.get_base_model()
    assert base.model.embed_tokens.weight.dtype == base.lm_head.weight.dtype == torch.bfloat16
    assert base.model.norm.weight.dtype == base.model.layers[0].input_layernorm.weight.dtype == torch.float32
    layer = base.model.layers[0].mlp.down_proj.base_layer.weight
    assert quantization.is_quantized(layer)
    assert layer.dtype == torch.uint8
    trained, total = quantization.count_parameters(model)
    whole = load_model(job.model_dir, dtype=torch.float32)
    assert total - trained == sum(weight.numel() for weight in whole.parameters())
    assert trained == sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_weights_are_near_the_stored_ones(jobs: JobFactory, kind: str) -> None:
    wish = Quantization(type=kind, compute_dtype="float32")
    config, notes = quantization.configure(wish, torch.device("cpu"))
    assert notes == []
    model = load_model(jobs.model_dir, dtype=torch.float32, quantization=config)
    quantization.prepare_for_training(model)
    whole = load_model(jobs.model_dir, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        error = (model(ids).logits - whole(ids).logits).norm() / whole(ids).logits.norm()
    assert 0 < error < {"nf4": 0.25, "int8": 0.02}[kind]


def test_a_killed_quantized_job_resumes_as_if_nothing_had_happened(jobs: JobFactory) -> None:
    content: dict[str, Any] = {
        "training": {"max_steps": 6, "save_strategy": "INTERVAL_STRATEGY_STEPS", "save_steps": 3},
        "language_model": {**qlora(type="nf4", double_quant=True), "lora": {"dropout": 0.2}},
    }
    whole_job, killed_job = jobs(**content), jobs(**content)
    whole = run(whole_job).curve()

    def die(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(killed_job, die)
    resumed_job = jobs(**content, resume_from=str(killed_job.checkpoints / "checkpoint-3"))
    assert run(resumed_job).curve() == {step: loss for step, loss in whole.items() if step > 3}
    one, other = (load_file(job.output_dir / "adapter_model.safetensors") for job in (whole_job, resumed_job))
    assert all(torch.equal(one[name], other[name]) for name in one | other)


@contextmanager
def peak_of_own_memory() -> Iterator[list[int]]:
    """Bytes of memory that this process gained at the most, files that are mapped not counted."""

    def anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))

    start, peak, ended = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.0005):
            peak[0] = max(peak[0], anonymous() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def test_the_whole_model_is_never_in_memory_unquantized(jobs: JobFactory, tmp_path: Path) -> None:
    built = scratch.build(
        tmp_path / "m", hidden_size=512, layers=12, vocab_size=320, corpus=[Path(json.__file__).read_text()]
    )
    quieten()
    config, _ = quantization.configure(Quantization(), torch.device("cpu"))
    load_model(jobs.model_dir, dtype=torch.float32, quantization=config)  # imports what takes memory too
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # freed tensors leave the process, as large ones always do
    with peak_of_own_memory() as peak:
        model = load_model(built.directory, dtype=torch.float32, quantization=config)
    size = 4 * sum(weight.numel() for weight in load_model(built.directory, dtype=torch.float32).parameters())
    assert size > 100 << 20
    assert peak[0] < 0.4 * size
    assert quantization.is_quantized(model.model.layers[0].mlp.up_proj.weight)


def test_every_module_of_the_documents_can_have_an_adapter(jobs: JobFactory) -> None:
    """C30: the attention's and the feed-forward's layers, the embeddings and the output layer."""
    job = jobs(language_model={"lora": {"target_modules": EVERY_MODULE}})
    run(job)
    saved = load_file(job.output_dir / "adapter_model.safetensors")
    assert all(any(f".{name}.lora_" in key for key in saved) for name in EVERY_MODULE)
    base = AutoModelForCausalLM.from_pretrained(job.model_dir)
    ids = torch.arange(3, 30)[None]
    before = base(ids).logits
    assert not torch.allclose(PeftModel.from_pretrained(base, job.output_dir)(ids).logits, before, atol=1e-4)


@pytest.mark.parametrize("method", ["METHOD_FULL", "METHOD_LORA"])
def test_recomputed_activations_are_not_kept_and_change_no_loss(jobs: JobFactory, method: str) -> None:
    """T25, C22, F29."""
    kept: dict[bool, int] = {}
    curves = {}
    for recomputed in (False, True):
        training = {"gradient_checkpointing": recomputed}
        job = jobs(training=training, language_model={"method": method, "lora": {"dropout": 0.0}})
        model = prepare_model(job, Precision(torch.float32, torch.float32, torch.float32), CPU)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, to=sizes: to.append(tensor.nbytes), id):  # type: ignore[misc]
            model(input_ids=torch.arange(3, 131)[None], use_cache=False)
        kept[recomputed] = sum(sizes)
        curves[recomputed] = run(job).curve()
    assert kept[True] < 0.5 * kept[False]
    assert curves[True] == pytest.approx(curves[False], rel=1e-5)


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_which_biases_are_trained(tiny_models: dict[str, Path], bias: str) -> None:
    """C31, on a family that has biases."""
    model = load_model(tiny_models["qwen2"], dtype=torch.float32)
    adapted = add_adapter(model, Lora(target_modules=("q_proj",), bias=bias), base_model=tiny_models["qwen2"])
    trained = {name.split(".")[-2 if "base_layer" not in name else -3] for name, weight in adapted.named_parameters()
               if weight.requires_grad and name.endswith("bias")}  # fmt: skip
    assert trained == {"none": set(), "lora_only": {"q_proj"}, "all": {"q_proj", "k_proj", "v_proj"}}[bias]


def test_an_adapter_trains_less_than_a_hundredth_and_the_log_says_so(jobs: JobFactory, tmp_path: Path) -> None:
    """C28."""
    corpus = [Path(json.__file__).read_text()]
    wide = scratch.build(tmp_path / "wide", hidden_size=256, layers=2, vocab_size=1024, corpus=corpus).directory
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
    events = run(jobs(model_dir=str(wide), training={"max_steps": 1}, language_model={"lora": lora}))
    share = float(events.text().split("parameters (")[1].split("%")[0])
    assert 0 < share < 1


def test_several_adapters_serve_one_base(jobs: JobFactory) -> None:
    """C28: two tasks, one base model in memory, either adapter chosen by name."""
    first, second = jobs(), jobs(training={"learning_rate": 5e-2})
    run(first)
    run(second)
    ids = torch.arange(3, 30)[None]

    def alone(folder: Path) -> torch.Tensor:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(first.model_dir), folder)
        logits: torch.Tensor = model(ids).logits
        return logits

    both = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(first.model_dir), first.output_dir, adapter_name="first"
    )
    both.load_adapter(str(second.output_dir), adapter_name="second")
    for name, job in (("first", first), ("second", second)):
        both.set_adapter(name)
        assert torch.equal(both(ids).logits, alone(job.output_dir))
