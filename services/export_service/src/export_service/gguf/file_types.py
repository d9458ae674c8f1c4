"""The kinds of GGUF files, and the type that each tensor has in one, as llama.cpp's quantizer chooses them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

BLOCK, SUPER_BLOCK = 32, 256


@dataclass(frozen=True, slots=True)
class FileType:
    """A kind of file: number is llama.cpp's, tensor the type of most of its tensors.

    direct files are written as the tensors are read; for others llama.cpp mixes types in one file. With importance it
    wants to know how much each column matters.
    """

    name: str
    number: LlamaFileType
    tensor: GGMLQuantizationType
    direct: bool = False
    importance: bool = False

    @property
    def block(self) -> int:
        """What the length of rows must be divisible by."""
        return SUPER_BLOCK if not self.direct and self.name != "IQ4_NL" else GGML_QUANT_SIZES[self.tensor][0]


def _direct(name: str, number: LlamaFileType) -> FileType:
    return FileType(name, number, GGMLQuantizationType[name], direct=True)


def _mixed(name: str, tensor: str = "", *, importance: bool = False) -> FileType:
    return FileType(name, LlamaFileType[f"MOSTLY_{name}"], GGMLQuantizationType[tensor or name], importance=importance)


_TYPES = (
    _direct("F32", LlamaFileType.ALL_F32),
    _direct("F16", LlamaFileType.MOSTLY_F16),
    _direct("BF16", LlamaFileType.MOSTLY_BF16),
    _direct("Q8_0", LlamaFileType.MOSTLY_Q8_0),
    _direct("Q4_0", LlamaFileType.MOSTLY_Q4_0),
    _direct("Q4_1", LlamaFileType.MOSTLY_Q4_1),
    _direct("Q5_0", LlamaFileType.MOSTLY_Q5_0),
    _direct("Q5_1", LlamaFileType.MOSTLY_Q5_1),
    _mixed("Q2_K"),
    *(_mixed(f"Q3_K_{size}", "Q3_K") for size in "SML"),
    *(_mixed(f"Q4_K_{size}", "Q4_K") for size in "SM"),
    *(_mixed(f"Q5_K_{size}", "Q5_K") for size in "SM"),
    _mixed("Q6_K"),
    _mixed("IQ1_S", importance=True),
    _mixed("IQ1_M", importance=True),
    _mixed("IQ2_S", importance=True),
    _mixed("IQ2_M", "IQ2_S", importance=True),
    _mixed("IQ3_S"),
    _mixed("IQ3_M", "IQ3_S"),
    _mixed("IQ4_NL"),
    _mixed("IQ4_XS"),
)
FILE_TYPES: Mapping[str, FileType] = MappingProxyType({kind.name: kind for kind in _TYPES})
UNQUANTIZED = frozenset({GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16})


def keeps_float32(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is never quantized: norms, biases and whatever else is no matrix."""
    return len(shape) < 2 or not name.endswith("weight") or name.endswith("_norm.weight")


def tensor_type(kind: FileType, name: str, shape: tuple[int, ...], *, tied: bool) -> GGMLQuantizationType:
    """The type of a tensor in a direct file. tied says that the embeddings are the output layer too."""
    if keeps_float32(name, shape):
        return GGMLQuantizationType.F32
    chosen = kind.tensor
    if chosen in UNQUANTIZED:
        return chosen
    columns = shape[-1]
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        fits = chosen != GGMLQuantizationType.Q8_0 and columns % SUPER_BLOCK == 0
        chosen = GGMLQuantizationType.Q6_K if fits else GGMLQuantizationType.Q8_0
    return chosen if columns % BLOCK == 0 else GGMLQuantizationType.F16
