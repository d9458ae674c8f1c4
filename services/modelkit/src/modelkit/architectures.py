"""Which language models and text classifiers the installed transformers knows, read without importing it."""

import ast
import importlib.util
from functools import cache
from pathlib import Path

CAUSAL = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
CLASSIFIERS = "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"


def causal_language_models() -> dict[str, str]:
    """Class name by model_type, from the table that AutoModelForCausalLM uses."""
    return _table(CAUSAL)


def sequence_classifiers() -> dict[str, str]:
    """Class name by model_type, from the table that AutoModelForSequenceClassification uses."""
    return _table(CLASSIFIERS)


@cache
def _table(name: str) -> dict[str, str]:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return {}
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            return dict(_pairs(node.value))
    return {}


def _pairs(call: ast.expr) -> list[tuple[str, str]]:
    pairs = [ast.literal_eval(pair) for pair in ast.walk(call) if isinstance(pair, ast.Tuple)]
    return [(kind, name if isinstance(name, str) else name[0]) for kind, name in pairs]
