"""What runs in the process of a model: it holds one base model, and writes answers for adapters of it in turns."""
