"""An adapter as a GGUF file does to a GGUF base what it does to the base model."""

from pathlib import Path
from typing import Any

import pytest

from export_service.gguf import GgufJob, GgufNotPossible, write, write_adapter
from services.export_service.tests.gguf.small_models import difference, field, small_model
from services.modelkit.tests.adapted import adapt

EXACT = 5e-3


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"use_rslora": True}),
        ("llama", {"target_modules": ["embed_tokens", "q_proj"], "alpha_pattern": {"q_proj": 3}}),
        ("phi3", {}),
        ("gemma2", {"target_modules": ["q_proj", "o_proj"]}),
    ],
)
def test_an_adapter_beside_its_base(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    base = small_model(tmp_path / "base", family)
    model = adapt(base, tmp_path / "adapter", **settings)
    (file,) = write(GgufJob(base, None, tmp_path, "base", ["F32"]))
    adapter = write_adapter(base, tmp_path / "adapter", tmp_path / "a-lora.gguf")
    assert field(adapter, "general.type") == "adapter"
    assert difference(model, file) > EXACT
    assert difference(model, file, adapter=adapter) < EXACT


def test_what_is_no_product_is_refused(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base", "llama")
    adapt(base, tmp_path / "adapter", modules_to_save=["lm_head"], target_modules=["q_proj"])
    with pytest.raises(GgufNotPossible, match="replaces whole tensors"):
        write_adapter(base, tmp_path / "adapter", tmp_path / "a-lora.gguf")
    tied = small_model(tmp_path / "tied", "qwen2")
    adapt(tied, tmp_path / "other", target_modules=["embed_tokens"])
    with pytest.raises(GgufNotPossible, match="share weights in the base"):
        write_adapter(tied, tmp_path / "other", tmp_path / "a-lora.gguf")
    assert not list(tmp_path.glob("*.gguf"))
