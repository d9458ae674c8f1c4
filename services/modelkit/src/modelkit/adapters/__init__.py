"""Adapters in PEFT form, read without PEFT: what they do to the tensors of their base model."""

from modelkit.adapters.adapter import WEIGHTS, Adapter, Factors, Product
from modelkit.adapters.config import CONFIG, AdapterConfig, read_config

__all__ = ["CONFIG", "WEIGHTS", "Adapter", "AdapterConfig", "Factors", "Product", "read_config"]
