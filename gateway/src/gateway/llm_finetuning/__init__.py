"""/api/llm-finetuning: the training guide's routes for adapters of language models."""
