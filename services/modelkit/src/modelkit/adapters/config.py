"""adapter_config.json of a LoRA adapter (arXiv:2106.09685), as far as the product of its matrices depends on it."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelkit.errors import InvalidAdapter, Problem
from modelkit.inspection import read_json

CONFIG = "adapter_config.json"
LORA = "LORA"
MAX_RANK = 16_384
MAX_PATTERNS = 10_000
# PEFT's patterns are regular expressions. Names with an anchor are all that is needed; others could be made endless.
PATTERN = re.compile(r"\^?[A-Za-z0-9_.\\]{1,300}\$?")
# Settings that change what is computed in ways that the product of two matrices does not show.
UNSUPPORTED = {
    "use_dora": "DoRA (weight-decomposed adapters)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "biases of its own in the adapter (lora_bias)",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "single tokens trained in full (trainable_token_indices)",
    "target_parameters": "adapters on bare parameters (target_parameters)",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "megatron_config": "Megatron layers",
}
# These initialisations leave the base model's own weights as they are; others take something away from them.
KEEPING_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter's configuration says: its rank, how its products are scaled, and what it was made for."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    fan_in_fan_out: bool
    bias: str
    modules_to_save: tuple[str, ...]
    task_type: str
    base_model: str
    ensures_tying: bool

    def rank_of(self, module: str) -> int:
        """The rank of the adapter on a module, "model.layers.0.self_attn.q_proj" for example."""
        return next((rank for pattern, rank in self.rank_pattern.items() if _matches(pattern, module)), self.rank)

    def scale_of(self, module: str) -> float:
        """What a module's product is multiplied by: alpha / r, or alpha / sqrt(r) (arXiv:2312.03732)."""
        matching = (alpha for pattern, alpha in self.alpha_pattern.items() if _matches(pattern, module))
        alpha, rank = next(matching, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rank_stabilized else alpha / rank


def read_config(directory: Path) -> AdapterConfig:
    """The configuration of a directory with an adapter. Raises InvalidAdapter listing all that is wrong."""
    try:
        raw = read_json(directory / CONFIG)
    except (OSError, ValueError) as error:
        raise InvalidAdapter(Problem("", f"{directory} has no adapter that can be read: {error}")) from error
    if problems := list(_problems(raw)):
        raise InvalidAdapter([Problem("", f"{CONFIG}: {problem}") for problem in problems])
    modules = raw.get("modules_to_save") or ()
    return AdapterConfig(
        rank=raw["r"],
        alpha=float(raw["lora_alpha"]),
        rank_pattern=raw.get("rank_pattern") or {},
        alpha_pattern=raw.get("alpha_pattern") or {},
        rank_stabilized=bool(raw.get("use_rslora")),
        fan_in_fan_out=bool(raw.get("fan_in_fan_out")),
        bias=str(raw.get("bias", "none")),
        modules_to_save=tuple(map(str, modules)),
        task_type=str(raw.get("task_type") or ""),
        base_model=str(raw.get("base_model_name_or_path") or ""),
        ensures_tying=bool(raw.get("ensure_weight_tying")),
    )


def _problems(raw: Mapping[str, Any]) -> Iterator[str]:
    if raw.get("peft_type") != LORA:
        yield f"peft_type is {raw.get('peft_type')!r}; only adapters of type {LORA} can be used"
        return
    for name, words in UNSUPPORTED.items():
        if raw.get(name):
            yield f"the adapter uses {words}, which is not supported; train it without"
    if raw.get("init_lora_weights", True) not in KEEPING_BASE:
        yield (
            f"the adapter was begun with {raw['init_lora_weights']!r}, which changes the base model's weights too; "
            "save it as an ordinary adapter first (path_initial_model_for_weight_conversion of PEFT)"
        )
    if not _is_rank(raw.get("r")):
        yield f"r is {raw.get('r')!r}; a whole number from 1 to {MAX_RANK} is expected"
    if not _is_number(raw.get("lora_alpha")):
        yield f"lora_alpha is {raw.get('lora_alpha')!r}; a number is expected"
    yield from _pattern_problems(raw, "rank_pattern", _is_rank)
    yield from _pattern_problems(raw, "alpha_pattern", _is_number)
    if not isinstance(raw.get("modules_to_save") or [], list):
        yield "modules_to_save is not a list of names"


def _pattern_problems(raw: Mapping[str, Any], name: str, is_valid: Any) -> Iterator[str]:
    patterns = raw.get(name) or {}
    if not isinstance(patterns, dict) or len(patterns) > MAX_PATTERNS:
        yield f"{name} is not an object with up to {MAX_PATTERNS} entries"
        return
    for pattern, value in patterns.items():
        if not PATTERN.fullmatch(pattern) or not _compiles(pattern) or not is_valid(value):
            yield f"{name} has an entry that cannot be used: {pattern[:100]!r}: {value!r}"


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _matches(pattern: str, module: str) -> bool:
    """As PEFT reads its patterns: the end of a module's name, beginning after a dot."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
