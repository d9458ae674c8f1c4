"""What models answer to questions, loaded from their directories the safe way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_TOKENS = 48
REPETITION_PENALTY = 1.15


def answer(model_dir: Path, questions: Sequence[str]) -> list[str]:
    """One answer per question, the likeliest word each time."""
    import torch

    from modelkit.loading import load_model, load_tokenizer, quieten

    quieten()
    tokenizer: Any = load_tokenizer(model_dir)
    model: Any = load_model(model_dir, dtype=torch.float32).eval()
    answers = []
    for question in questions:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(
                **prompt, max_new_tokens=MOST_TOKENS, do_sample=False, repetition_penalty=REPETITION_PENALTY
            )
        new = output[0, prompt["input_ids"].shape[1] :]
        answers.append(str(tokenizer.decode(new, skip_special_tokens=True)).strip())
    return answers
