"""ChatGLM checkpoints in their original layout, which ask for code of their own: converted to the architecture "glm".

Nothing that lies beside the weights is run. The two architectures compute the same; names, shapes and the tokenizer's
form differ.
"""

from modelkit.chatglm.config import MODEL_TYPE, converted_layers, equivalent_config, is_original, problems
from modelkit.chatglm.conversion import convert, convert_outline

__all__ = [
    "MODEL_TYPE",
    "convert",
    "convert_outline",
    "converted_layers",
    "equivalent_config",
    "is_original",
    "problems",
]
