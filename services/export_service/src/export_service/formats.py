"""The forms a model can be exported to: names that requests and file names share, and what each means.

Bits per weight of GGUF types are file size over weights of a model of 8 billion weights whose embedding and output
layers are quantized too (Llama 3.1 8B, from the tables of llama.cpp's quantize tool); small models come out higher.
"""

from dataclasses import dataclass

from export_service.names import DEFAULT_TYPE
from tunesmith.task.v1 import spec_pb2

SUPER_BLOCK = "rows must be divisible by 256"
IMPORTANCE = f"{SUPER_BLOCK}; wants an importance matrix of the training data"


@dataclass(frozen=True, slots=True)
class FormatDescription:
    """A form of an exported model; quantization is empty and bits_per_weight 0 for forms without."""

    format: "spec_pb2.ExportFormat.ValueType"
    description: str
    quantization: str = ""
    bits_per_weight: float = 0.0


@dataclass(frozen=True, slots=True)
class PackageTemplate:
    """A usual package; the first of all is the default."""

    name: str
    description: str
    format: "spec_pb2.ExportFormat.ValueType"
    quantizations: tuple[str, ...] = ()


def _gguf(quantization: str, bits_per_weight: float, description: str) -> FormatDescription:
    text = f"GGUF of the merged model: {description}."
    return FormatDescription(spec_pb2.EXPORT_FORMAT_GGUF, text, quantization, bits_per_weight)


FORMATS = (
    FormatDescription(
        spec_pb2.EXPORT_FORMAT_ADAPTER, "ZIP of the adapter's files (PEFT form), to be used with the base model."
    ),
    FormatDescription(
        spec_pb2.EXPORT_FORMAT_MERGED,
        "Base model and adapter merged into one model in Hugging Face form, weights in safetensors.",
    ),
    _gguf("Q2_K", 3.16, f"2-bit K-quant, small, noticeable loss; {SUPER_BLOCK}"),
    _gguf("Q3_K_S", 3.64, f"3-bit K-quant, small mix; {SUPER_BLOCK}"),
    _gguf("Q3_K_M", 4.0, f"3-bit K-quant, medium mix; {SUPER_BLOCK}"),
    _gguf("Q3_K_L", 4.3, f"3-bit K-quant, large mix; {SUPER_BLOCK}"),
    _gguf("Q4_0", 4.64, "4-bit blocks of 32 with a scale, simple and fast; rows must be divisible by 32"),
    _gguf("Q4_1", 5.11, "4-bit blocks of 32 with scale and minimum; rows must be divisible by 32"),
    _gguf("Q4_K_S", 4.67, f"4-bit K-quant, small mix; {SUPER_BLOCK}"),
    _gguf("Q4_K_M", 4.89, f"4-bit K-quant, medium mix, the usual choice; {SUPER_BLOCK}"),
    _gguf("Q5_0", 5.57, "5-bit blocks of 32 with a scale; rows must be divisible by 32"),
    _gguf("Q5_1", 6.04, "5-bit blocks of 32 with scale and minimum; rows must be divisible by 32"),
    _gguf("Q5_K_S", 5.57, f"5-bit K-quant, small mix; {SUPER_BLOCK}"),
    _gguf("Q5_K_M", 5.7, f"5-bit K-quant, medium mix, little loss; {SUPER_BLOCK}"),
    _gguf("Q6_K", 6.56, f"6-bit K-quant, hardly any loss; {SUPER_BLOCK}"),
    _gguf("Q8_0", 8.5, "8-bit blocks of 32 with a scale, next to no loss; rows must be divisible by 32"),
    _gguf("IQ1_S", 2.0, f"1-bit I-quant, the smallest, heavy loss; {IMPORTANCE}"),
    _gguf("IQ1_M", 2.15, f"1-bit I-quant, medium mix, heavy loss; {IMPORTANCE}"),
    _gguf("IQ2_S", 2.74, f"2-bit I-quant, small mix; {IMPORTANCE}"),
    _gguf("IQ2_M", 2.93, f"2-bit I-quant, medium mix; {IMPORTANCE}"),
    _gguf("IQ3_S", 3.66, f"3-bit I-quant, small mix; {SUPER_BLOCK}"),
    _gguf("IQ3_M", 3.76, f"3-bit I-quant, medium mix; {SUPER_BLOCK}"),
    _gguf("IQ4_NL", 4.68, "4-bit non-linear blocks of 32; rows must be divisible by 32"),
    _gguf("IQ4_XS", 4.46, f"4-bit non-linear I-quant, smaller than IQ4_NL; {SUPER_BLOCK}"),
    _gguf("F16", 16.0, "float16, not quantized; values beyond 65504 do not fit"),
    _gguf("BF16", 16.0, "bfloat16, not quantized, the range of float32"),
    _gguf("F32", 32.0, "float32, not quantized"),
    FormatDescription(
        spec_pb2.EXPORT_FORMAT_GGUF_BASE, "GGUF of the base model alone, in the same types as the merged model."
    ),
    FormatDescription(
        spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER, "GGUF of the adapter alone, loaded by llama.cpp beside a GGUF of the base."
    ),
)
PACKAGES = (
    PackageTemplate(
        "merge_and_quantize",
        "Base and adapter in one GGUF file, quantized: small and fast.",
        spec_pb2.EXPORT_FORMAT_GGUF,
        (DEFAULT_TYPE,),
    ),
    PackageTemplate(
        "merge_only", "Base and adapter in one GGUF file, not quantized.", spec_pb2.EXPORT_FORMAT_GGUF, ("F16",)
    ),
    PackageTemplate(
        "base_only",
        "The base model alone as GGUF, quantized, to be used with adapters.",
        spec_pb2.EXPORT_FORMAT_GGUF_BASE,
        (DEFAULT_TYPE,),
    ),
    PackageTemplate(
        "lora_only",
        "The adapter alone as GGUF, loaded beside a GGUF of its base model.",
        spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER,
    ),
)
