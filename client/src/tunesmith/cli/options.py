"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

CONNECTION = "Connection"

PARAMETERS = (
    "adam_beta1, adam_beta2, adam_epsilon, bf16, cuda_visible_devices, dataloader_num_workers, dataloader_pin_memory, "
    "divergence_action, early_stopping_patience, early_stopping_threshold, eval_ratio, eval_steps, eval_strategy, "
    "fp16, gradient_accumulation_steps, gradient_checkpointing, label_column, labels, learning_rate, log_level, "
    "logging_steps, lora_alpha, lora_bias, lora_dropout, lora_r, lora_target_modules, lr_scheduler_num_cycles, "
    "lr_scheduler_type, max_grad_norm, max_samples, max_seq_length, max_steps, merge_after_training, messages_column, "
    "method, min_lr_rate, num_train_epochs, objective, optim, overfitting_action, packing, padding_free, parallelism, "
    "per_device_eval_batch_size, per_device_train_batch_size, processes, prompt_column, quantization_compute_dtype, "
    "quantization_double_quant, quantization_type, response_column, resume_from_checkpoint, save_interval_minutes, "
    "save_steps, save_strategy, save_total_limit, seed, shuffle, stall_action, system_column, test_ratio, "
    "text_column, tf32, tokenizer_path, train_on_prompt, warmup_ratio, warmup_steps, weight_decay"
)


def setting(example: str) -> Any:
    """The option that gives a parameter of a command, with an example of one that it takes."""
    return typer.Option("--set", metavar="NAME=VALUE", help=f"A parameter, for example {example}. Repeatable.")


Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="Address of the platform; else TUNESMITH_URL.", rich_help_panel=CONNECTION, show_default=False
    ),
]
Token = Annotated[
    str | None,
    typer.Option("--token", help="Bearer token; else TUNESMITH_TOKEN.", rich_help_panel=CONNECTION, show_default=False),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Data directory of a platform on this machine, for its address and token; else TUNESMITH_DATA_DIR, else "
        "~/.tunesmith.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="At most so many, newest first.")]
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.", show_default=False)]
TaskIds = Annotated[list[str], typer.Argument(metavar="TASK...", help="Ids of the tasks.", show_default=False)]

BaseModel = Annotated[
    str, typer.Option("--base-model", help="Directory or name of the base model.", show_default=False)
]
Data = Annotated[
    str,
    typer.Option("--dataset", help="Training data: file, directory, address, or id of an upload.", show_default=False),
]
DatasetId = Annotated[str, typer.Option("--dataset-id", help="Id of an uploaded dataset.", show_default=False)]
Method = Annotated[
    Literal["full", "lora", "qlora"] | None, typer.Option("--method", help="What is trained. Default lora.")
]
Objective = Annotated[
    Literal["sft", "pretrain", "classification"] | None,
    typer.Option("--objective", help="What is learnt. Default sft."),
]
TemplateId = Annotated[
    str, typer.Option("--template", metavar="ID", help="Template that fills in what is not given.", show_default=False)
]
Settings = Annotated[list[str] | None, setting("learning_rate=1e-4")]
OutputDir = Annotated[str, typer.Option("--output-dir", help="Directory that receives the model.", show_default=False)]
Validation = Annotated[str, typer.Option("--validation", help="File of the validation split.", show_default=False)]
