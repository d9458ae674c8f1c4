"""Which causal language models the installed transformers knows, read without importing it."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@cache
def causal_language_models() -> dict[str, str]:
    """Class name by model_type, from the table that AutoModelForCausalLM uses."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == TABLE for name in node.targets
        ):
            return dict(_pairs(node.value))
    return {}


def _pairs(call: ast.expr) -> list[tuple[str, str]]:
    pairs = [ast.literal_eval(pair) for pair in ast.walk(call) if isinstance(pair, ast.Tuple)]
    return [(kind, name if isinstance(name, str) else name[0]) for kind, name in pairs]
