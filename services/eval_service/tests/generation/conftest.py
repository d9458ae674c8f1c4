"""Small models with weights that make their answers vary, and adapters on them."""

import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from modelkit import scratch
from modelkit.loading import load_model, load_tokenizer

FAMILIES = ("llama", "llama2", "qwen2")


def build_model(directory: Path, family: str, *, seed: int = 0, template: bool = True, hidden_size: int = 32) -> Path:
    """A model of two layers whose scores differ enough for an answer of several words."""
    text = Path(threading.__file__).read_text()
    sizes = {"hidden_size": hidden_size, "layers": 2, "vocab_size": 600, "max_length": 1024}
    scratch.build(directory, family=family, corpus=[text, "Grüße, 你好 und 👋 "], seed=seed, **sizes)
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    louder = {
        name: torch.randn(tensor.shape, generator=generator) * 0.3 if tensor.ndim == 2 else tensor
        for name, tensor in weights.items()
    }
    save_file(louder, directory / "model.safetensors", {"format": "pt"})
    if not template:
        (directory / "chat_template.jinja").unlink()
    return directory


def build_adapter(directory: Path, base: Path, *, seed: int, **options: Any) -> Path:
    """An adapter as PEFT saves it, with weights that change every answer."""
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names within transformers that PEFT still uses
        model: Any = get_peft_model(
            load_model(base, dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", **settings)
        )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(directory))
    load_tokenizer(base).save_pretrained(str(directory))
    return directory


def adapted(base: Path, directory: Path) -> Any:
    """A model with its adapter, as PEFT runs it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(load_model(base, dtype=torch.float32), str(directory)).eval()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are quickest with one thread, all the more where other tests want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of models by family."""
    return {family: build_model(tmp_path_factory.mktemp(family) / "m", family) for family in FAMILIES}


@pytest.fixture(scope="session")
def adapters(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two adapters on the model of the family qwen2."""
    folder = tmp_path_factory.mktemp("adapters")
    return [build_adapter(folder / str(seed), models["qwen2"], seed=seed) for seed in (1, 2)]
