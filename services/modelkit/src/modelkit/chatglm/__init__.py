"""ChatGLM and GLM-4 checkpoints in their original layout, converted to the architecture "glm".

They ask for code of their own, and nothing that lies beside the weights is run. The two architectures compute the same;
names, shapes and the tokenizer's form differ.
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
