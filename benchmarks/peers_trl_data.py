"""The peer of preparation.py: TRL's own preparation of conversations with masks. Prints the seconds that it took."""

import sys
import time

import datasets
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main(model: str, dataset: str, output: str, processes: str) -> None:
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)
    config = SFTConfig(
        output_dir=output,
        max_length=512,
        assistant_only_loss=True,
        dataset_num_proc=int(processes),
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    few = load_dataset("json", data_files=dataset, split="train[:8]", cache_dir=f"{output}/few")
    network = AutoModelForCausalLM.from_pretrained(model)
    trainer = SFTTrainer(model=network, args=config, train_dataset=few, processing_class=tokenizer)
    print("begin", flush=True)
    started = time.perf_counter()
    rows = load_dataset("json", data_files=dataset, split="train", cache_dir=f"{output}/cache")
    prepared = trainer._prepare_dataset(
        rows, tokenizer, config, packing=False, formatting_func=None, dataset_name="train"
    )
    elapsed = time.perf_counter() - started
    masks = prepared.column_names
    print(f"seconds {elapsed} rows {len(prepared)} columns {','.join(masks)}", flush=True)
    sample = prepared[0]
    labels = sample.get("labels") or [
        token if mask else -100 for token, mask in zip(sample["input_ids"], sample["assistant_masks"], strict=True)
    ]
    print(f"first {sample['input_ids']} {labels}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
