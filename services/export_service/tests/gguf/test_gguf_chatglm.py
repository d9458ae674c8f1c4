"""ChatGLM and GLM-4 in their original layout become GGUF files by way of their converted form."""

from pathlib import Path
from typing import Any

import pytest

from export_service.gguf import GgufJob, write
from export_service.parity import llama
from modelkit.base_models import BaseModels
from services.export_service.tests.gguf.small_models import difference, numbers, texts, torch_model
from services.modelkit.tests import chatglm_checkpoints
from services.modelkit.tests.chatglm_checkpoints import checkpoint, configuration, models, sentencepiece_model
from services.modelkit.tests.test_chatglm_tokenizers import ranks

__all__ = ["models", "ranks", "sentencepiece_model"]

EXACT = 5e-3


@pytest.mark.parametrize(
    ("name", "tokenizer", "changes"),
    [
        ("THUDM/chatglm3-6b", "sentencepiece_model", {}),
        ("THUDM/chatglm2-6b-32k", "sentencepiece_model", {"add_qkv_bias": False, "rope_ratio": 50}),
        ("THUDM/glm-4-9b-chat", "ranks", {"rope_ratio": 500}),
    ],
)
def test_a_converted_checkpoint(
    tmp_path: Path,
    models: BaseModels,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    name: str,
    tokenizer: str,
    changes: dict[str, Any],
) -> None:
    monkeypatch.setattr(chatglm_checkpoints, "HIDDEN", 64)
    checkpoint(tmp_path / "root" / name, request.getfixturevalue(tokenizer), configuration(**changes))
    base = models.ready(models.resolve(name))
    (file,) = write(GgufJob(base, None, tmp_path / "out", "m", ["F32"]))
    assert difference(torch_model(base), file) < EXACT
    given = texts(base)
    answer = llama.ask(file, [[3, 4, 5]], given)
    assert answer.tokens == [numbers(base, text) for text in given]
