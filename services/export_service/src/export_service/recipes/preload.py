"""Imports what exports need, for a fork server. Nothing here computes with a tensor: its children would hang."""

from importlib import import_module

from workerkit.child import environment

MODULES = (
    "torch",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "peft.tuners.lora",
    "export_service.recipes.entry",
)


def preload() -> None:
    """Imports MODULES in the environment that they need."""
    environment.apply()
    for name in MODULES:
        import_module(name)


preload()
