"""The losses are those of trl.SFTTrainer on the same model, rows and settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import JobFactory, run

SCRIPT = """
import json, sys
from datasets import Dataset
from modelkit import datasets
from modelkit.chat import ChatEncoder
from modelkit.loading import load_config, load_model, load_tokenizer
from pathlib import Path
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer
import torch

model_dir, train_file, out = sys.argv[1:]
tokenizer = load_tokenizer(Path(model_dir))
encoder = ChatEncoder(tokenizer, max_length=128, stop_ids=load_config(Path(model_dir)).eos_token_id)
rows = encoder.encode(datasets.JsonlDataset(datasets.scan(Path(train_file)))[:])
columns = {"input_ids": [row.input_ids.tolist() for row in rows], "labels": [row.labels.tolist() for row in rows]}
arguments = SFTConfig(
    out, max_steps=6, per_device_train_batch_size=22, learning_rate=5e-3, logging_steps=1, save_strategy="no",
    bf16=False, use_cpu=True, warmup_steps=2, lr_scheduler_type="cosine", report_to="none", seed=42,
    gradient_checkpointing=False, weight_decay=0.01, max_length=None, disable_tqdm=True,
)
adapter = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=True)
curves = {}
for method in ("FULL", "LORA"):
    torch.manual_seed(42)
    trainer = SFTTrainer(
        load_model(Path(model_dir), dtype=torch.float32), args=arguments, train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer, peft_config=adapter if method == "LORA" else None,
    )
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    curves[method] = [[entry["loss"], entry["grad_norm"]] for entry in steps]
print(json.dumps(curves))
"""


@pytest.mark.timeout(180)  # the reference imports all of TRL in a process of its own
def test_the_curves_are_those_of_trl(jobs: JobFactory, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(jobs.model_dir), str(jobs.train_file), str(tmp_path)]
    theirs = subprocess.run(command, capture_output=True, text=True, check=False)
    assert theirs.returncode == 0, theirs.stderr
    curves = json.loads(theirs.stdout.splitlines()[-1])
    training = {
        "per_device_train_batch_size": 22,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
        "weight_decay": 0.01,
    }
    for method in ("FULL", "LORA"):
        language_model = {"method": f"METHOD_{method}", "lora": {"dropout": 0.0}}
        ours = run(jobs(training=training, language_model=language_model))
        losses, norms = zip(*curves[method], strict=True)
        assert losses == pytest.approx(tuple(ours.curve().values()), rel=2e-3)
        assert norms == pytest.approx(tuple(ours.curve("grad_norm").values()), rel=2e-2)
