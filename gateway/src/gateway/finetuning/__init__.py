"""The surface of the fine-tuning tasks document: /finetuning/*, also under /api."""
