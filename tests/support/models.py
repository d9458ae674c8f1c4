"""What tests change about scratch models to make them like published ones."""

import json
from pathlib import Path
from typing import Any

from modelkit.loading import load_tokenizer

# As Qwen3 does: the last reply is shown with room for thoughts, those before without.
THINKING_TEMPLATE = """\
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and loop.last %}<think>

</think>

{% endif %}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_for_plain_text(model: Path) -> list[int]:
    """Lets a LLaMA 3 name another end than its template ends replies with, as base models do; both, its own first."""
    tokenizer: Any = load_tokenizer(model)
    tokenizer.eos_token = "<|end_of_text|>"
    tokenizer.save_pretrained(model)
    ends: list[int] = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    for name in ("config.json", "generation_config.json"):
        known = json.loads((model / name).read_text()) if (model / name).is_file() else {}
        (model / name).write_text(json.dumps(known | {"eos_token_id": ends[0]}))
    return ends
