"""Why a model cannot become a GGUF file."""

from modelkit.errors import ModelkitError, Problem


class GgufNotPossible(ModelkitError):
    """llama.cpp could not run the model, or not in the form that was asked for."""

    reason = "GGUF_NOT_POSSIBLE"


class QuantizationFailed(ModelkitError):
    """llama.cpp's quantizer gave up."""

    reason = "QUANTIZATION_FAILED"


def not_possible(message: str, field: str = "") -> GgufNotPossible:
    """The error for one problem."""
    return GgufNotPossible(Problem(field, message))
