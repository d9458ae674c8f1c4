"""The peers of throughput.py, each a process of its own: trains, then prints one line of JSON.

python -m benchmarks.throughput_peers PEER METHOD MODEL DATASET OUTPUT STEPS
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROWS, LONGEST, RATE, WARM_UP = 8, 512, 1e-3, 4
LORA: dict[str, Any] = {"r": 16, "alpha": 32, "dropout": 0.0}


def print_result(times: list[float], tokens: list[float], losses: list[float]) -> None:
    """Tokens a second after the warm-up; times are those at which each step ended."""
    seconds = times[-1] - times[WARM_UP - 1]
    print(json.dumps({"tokens_per_second": sum(tokens[WARM_UP:]) / seconds, "losses": losses}), flush=True)


def train_tunesmith(method: str, model: str, dataset: str, output: str, steps: int, *, packing: bool) -> None:
    """The recipe as a worker runs it."""
    import trainer_service.recipes.preload  # noqa: F401
    from trainer_service.recipes.config import Job
    from trainer_service.recipes.language_model import train
    from trainer_service.recipes.world import World
    from workerkit.child.events import EventWriter
    from workerkit.child.stopping import StopRequest

    times: list[float] = []
    losses: list[float] = []
    tokens: list[float] = []

    class Steps(EventWriter):
        def _send(self, event: Mapping[str, Any]) -> None:
            values = event.get("values", {})
            if "loss" in values:
                now = time.perf_counter()
                tokens.append(values["tokens_per_second"] * (now - (times[-1] if times else started)))
                times.append(now)
                losses.append(values["loss"])

    folder = Path(output)
    settings = {
        "max_steps": steps,
        "logging_steps": 1,
        "save_strategy": "INTERVAL_STRATEGY_NO",
        "learning_rate": RATE,
        "per_device_train_batch_size": ROWS,
        "bf16": True,
    }
    language_model = {
        "method": f"METHOD_{method}",
        "max_seq_length": LONGEST,
        "packing": packing,
        "shuffle": False,
        "lora": LORA,
    }
    job = {
        "spec": {"base_model": model, "training": settings, "language_model": language_model},
        "model_dir": model,
        "train_file": dataset,
        "work_dir": output,
        "output_dir": str(folder / "output"),
    }
    (folder / "job.json").write_text(json.dumps(job))
    started = time.perf_counter()
    train(Job.load(folder), Steps(None), StopRequest(), World.join())
    print_result(times, tokens, losses)


def train_trl(method: str, model: str, dataset: str, output: str, steps: int, **options: Any) -> None:
    """TRL on the same rows in the same order, tokenised before the clock starts."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from modelkit import datasets
    from modelkit.chat import ChatEncoder
    from modelkit.loading import load_config, load_tokenizer

    times: list[float] = []
    tokens: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class InOrder(SFTTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            rows: Any = self.train_dataset
            return SequentialSampler(rows)

        def get_batch_samples(self, *arguments: Any) -> Any:
            samples, items = super().get_batch_samples(*arguments)
            tokens.append(sum(int(batch.get("attention_mask", batch["labels"] * 0 + 1).sum()) for batch in samples))
            return samples, items

    tokenizer: Any = load_tokenizer(Path(model))
    encoder = ChatEncoder(tokenizer, max_length=LONGEST, stop_ids=load_config(Path(model)).eos_token_id)
    conversations: Any = datasets.JsonlDataset(datasets.scan(Path(dataset)))[:]
    rows = encoder.encode(conversations)
    columns = {"input_ids": [row.input_ids.tolist() for row in rows], "labels": [row.labels.tolist() for row in rows]}
    adapter = LoraConfig(r=LORA["r"], lora_alpha=LORA["alpha"], target_modules="all-linear", task_type="CAUSAL_LM")
    torch.manual_seed(42)
    trainer = InOrder(
        model,
        args=SFTConfig(
            output,
            **{
                "max_steps": steps,
                "per_device_train_batch_size": ROWS,
                "learning_rate": RATE,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "max_length": LONGEST,
                "disable_tqdm": True,
                "use_cpu": True,
                **options,
            },
        ),
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=adapter if method == "LORA" else None,
        callbacks=[Clock()],
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print_result(times, tokens, losses)


PEERS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "tunesmith": (train_tunesmith, {"packing": False}),
    "tunesmith packed": (train_tunesmith, {"packing": True}),
    "trl": (train_trl, {}),
    "trl tuned": (
        train_trl,
        {
            "packing": True,
            "gradient_checkpointing": False,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": ROWS,
        },
    ),
}


def main(peer: str, method: str, model: str, dataset: str, output: str, steps: str) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    run, options = PEERS[peer]
    run(method, model, dataset, output, int(steps), **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
