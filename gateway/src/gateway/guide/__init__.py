"""What the two surfaces of the training guide share: /api/training and /api/llm-finetuning."""
