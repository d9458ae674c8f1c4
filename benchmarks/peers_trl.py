"""The peer of first_step.py: what a person would write with TRL. Prints a line at the first optimiser step."""

import sys

from datasets import load_dataset
from peft import LoraConfig
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer


class FirstStep(TrainerCallback):
    """Says when the first optimiser step is done, and ends."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        print("first step", flush=True)
        control.should_training_stop = True
        return control


def main(model: str, dataset: str, output: str) -> None:
    rows = load_dataset("json", data_files=dataset, split="train", cache_dir=f"{output}/cache")
    rows = rows.map(
        lambda row: {"prompt": row["instruction"], "completion": row["output"]}, remove_columns=rows.column_names
    )
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=output,
            max_steps=2,
            per_device_train_batch_size=4,
            max_length=512,
            learning_rate=2e-4,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=rows,
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"),
        callbacks=[FirstStep()],
    )
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
