"""What helps when a training goes wrong, in the order in which it is worth trying. Imports no training library."""

OUT_OF_MEMORY = (
    "reduce the batch size (per_device_train_batch_size); raise gradient_accumulation_steps to make up for it",
    "enable gradient_checkpointing",
    "use QLoRA instead of LoRA, or LoRA instead of full training",
    "reduce the sequence length (max_seq_length)",
    "use a smaller base model",
)
DIVERGED = (
    "lower learning_rate",
    "lower max_grad_norm or add warmup_steps",
    "use bf16 or float32 instead of fp16",
    "look for damaged rows in the dataset",
)
LOSS_NOT_FALLING = (
    "learning_rate may be too low: raise it",
    "learning_rate may be too high: lower it",
    "the data may be of bad quality: clean the dataset",
    "the data may be prepared wrongly: look at the dataset's report and its preview of labels",
)
OVERFITTING = (
    "add more training data",
    "use data augmentation",
    "increase dropout (lora.dropout)",
    "reduce the model's complexity (lora.r, or a smaller base model)",
    "use early stopping (early_stopping_patience)",
)
SLOW = (
    "train on a GPU",
    "use mixed precision (bf16, or fp16 on a GPU)",
    "make loading the data cheaper (more workers: dataloader_num_workers)",
    "keep the dataset on an SSD",
)
