"""Tasks of lm-evaluation-harness on a model in memory, with data of this machine alone (T26)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from eval_service import suites
from eval_service.recipes.progress import Stopping
from modelkit import scratch
from modelkit.attention import use_segments
from modelkit.loading import load_config, load_model, load_tokenizer
from workerkit.child import environment

pytestmark = [
    pytest.mark.timeout(180),  # the harness is loaded
    pytest.mark.filterwarnings("ignore"),  # of the harness and what it brings along
]


def stopping() -> None:
    raise Stopping


def test_a_task_is_run_on_the_model_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.apply()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    data = tmp_path / "questions.jsonl"
    rows = [{"question": f"{n} and one is", "choices": [str(n + 1), str(n)], "answer": n % 2} for n in range(6)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task: Any = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    folder = tmp_path / "model"
    scratch.build(folder, hidden_size=32, layers=2, vocab_size=320, corpus=[Path(json.__file__).read_text()])
    config: Any = load_config(folder)
    model: Any = load_model(folder, dtype=torch.float32, config=config).eval()
    use_segments(model)
    passes: list[int] = []
    found = suites.run([task], model, load_tokenizer(folder, config), lambda: passes.append(1))
    assert set(found) == {"sums/acc"}
    assert 0 <= found["sums/acc"] <= 1
    assert passes
    with pytest.raises(Stopping):
        suites.run([task], model, load_tokenizer(folder, config), stopping)
    model(torch.ones(1, 1, dtype=torch.long))  # nobody asks any more
