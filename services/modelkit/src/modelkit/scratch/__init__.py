"""Small untrained models in Hugging Face form, with a tokenizer trained on a corpus and a chat template."""

from modelkit.scratch.build import ScratchModel, build
from modelkit.scratch.families import FAMILIES

__all__ = ["FAMILIES", "ScratchModel", "build"]
