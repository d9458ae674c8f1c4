"""The model and data that the training benchmarks share."""

import json
from dataclasses import dataclass
from pathlib import Path

from modelkit.scratch import build as build_scratch_model
from tunesmith.task.v1.spec_pb2 import (
    METHOD_LORA,
    DatasetSource,
    FinetuneSpec,
    LanguageModelParameters,
    TaskSpec,
    TrainingParameters,
)
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

ROWS = 3000


@dataclass(frozen=True)
class TrainingWorkload:
    """A scratch llama (hidden size 256, 4 layers) and rows of instruction, input and output."""

    model: Path
    dataset: Path

    @classmethod
    def create(cls, directory: Path) -> "TrainingWorkload":
        directory.mkdir(parents=True, exist_ok=True)
        dataset = directory / "train.jsonl"
        with dataset.open("w") as file:
            for number in range(ROWS):
                answer = " ".join(
                    f"{number} times {factor} is {number * factor}." for factor in range(2, 2 + number % 7)
                )
                row = {"instruction": f"Multiply {number}.", "input": "", "output": answer or f"{number}."}
                file.write(json.dumps(row) + "\n")
        model = directory / "model"
        build_scratch_model(model, family="llama", corpus=dataset, hidden_size=256, layers=4, vocab_size=4096)
        return cls(model, dataset)

    def request(self, name: str, steps: int) -> CreateTaskRequest:
        """A LoRA training of some optimiser steps."""
        spec = FinetuneSpec(
            base_model=str(self.model),
            dataset=DatasetSource(path=str(self.dataset)),
            training=TrainingParameters(
                max_steps=steps,
                per_device_train_batch_size=4,
                logging_steps=1,
                save_steps=1_000_000,
                learning_rate=2e-4,
            ),
            language_model=LanguageModelParameters(method=METHOD_LORA, max_seq_length=512),
        )
        return CreateTaskRequest(name=name, spec=TaskSpec(finetune=spec))
