"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

CONNECTION = "Connection"

PARAMETERS = (
    "bf16, cuda_visible_devices, dataloader_num_workers, early_stopping_patience, early_stopping_threshold, "
    "eval_ratio, eval_steps, eval_strategy, fp16, gradient_accumulation_steps, gradient_checkpointing, "
    "learning_rate, logging_steps, lora_alpha, lora_bias, lora_dropout, lora_r, lora_target_modules, "
    "lr_scheduler_type, max_grad_norm, max_samples, max_seq_length, max_steps, method, num_train_epochs, "
    "objective, optim, packing, per_device_eval_batch_size, per_device_train_batch_size, processes, "
    "quantization_compute_dtype, quantization_double_quant, quantization_type, save_interval_minutes, save_steps, "
    "save_strategy, save_total_limit, seed, tf32, warmup_ratio, warmup_steps, weight_decay"
)

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
        help="Data directory of a platform on this machine, for its address and token. Default ~/.tunesmith.",
        rich_help_panel=CONNECTION,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
TaskId = Annotated[str, typer.Argument(metavar="TASK", help="Id of the task.", show_default=False)]
TaskIds = Annotated[list[str], typer.Argument(metavar="TASK...", help="Ids of the tasks.", show_default=False)]
