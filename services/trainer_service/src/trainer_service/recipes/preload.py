"""Imports everything that jobs need, for a fork server. Nothing here touches CUDA or computes with a tensor: a process
that forks after either hangs or breaks its children."""

from importlib import import_module

from workerkit.child import environment

MODULES = (
    "peft.tuners.lora",
    "tensorboard.compat.proto.event_pb2",
    "tensorboard.summary.writer.record_writer",
    "torch.distributed",
    "torch.nn.parallel",
    "torch.utils.checkpoint",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.glm4.modeling_glm4",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.modeling_qwen2",
    "modelkit.dataset_report",
    "trainer_service.data_answers",
    "trainer_service.recipes.entry",
    "trainer_service.recipes.failures",
    "trainer_service.recipes.language_model",
)


def preload() -> None:
    """Imports MODULES in the environment that they need."""
    environment.apply()
    for name in MODULES:
        import_module(name)
    warm_up()


def warm_up() -> None:
    """Fills tables that the libraries build when they are first asked: plain Python, 0.1 s of each job's start."""
    import_module("modelkit.architectures").causal_language_models()
    conversions = import_module("transformers.conversion_mapping")
    conversions.get_checkpoint_conversion_mapping("llama")


preload()
