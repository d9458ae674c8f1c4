"""Imports what evaluations and the processes of models need, for a fork server; nothing here computes with a tensor."""

from importlib import import_module

from workerkit.child import environment

MODULES = (
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.glm4.modeling_glm4",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.qwen3.modeling_qwen3",
    "eval_service.generation.engine.base_engine",
    "eval_service.generation.engine.child",
    "eval_service.recipes.entry",
    "eval_service.recipes.evaluation",
)


def preload() -> None:
    """Imports MODULES in the environment that they need."""
    environment.apply()
    for name in MODULES:
        import_module(name)
    import_module("modelkit.architectures").causal_language_models()
    import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")


preload()
