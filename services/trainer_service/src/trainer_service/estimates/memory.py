"""Memory of a device at the peak of a training.

Weights, gradients and the optimiser's state are counted tensor by tensor. Activations follow Korthikanti et al.,
arXiv:2205.05198, without the part that attention kernels no longer store; the terms were compared with what the blocks
of transformers keep for the backward pass, which a test repeats. Quantized weights: arXiv:2305.14314.
"""

from dataclasses import dataclass

from trainer_service.estimates.optimizers import FLOAT, gradient_bytes, state_bytes
from trainer_service.estimates.shape import Matrix, Shape, Sizes
from trainer_service.recipes.config import Finetune, LanguageModel, Lora, Quantization, Training

HALF = 2
HALF_FORMATS = frozenset({"bfloat16", "float16"})
MIB = 1 << 20
# CUDA's context with its libraries and workspaces; a training process with torch and transformers imported.
CONTEXT_BYTES = {"cuda": 700 * MIB, "cpu": 1000 * MIB}
# The allocator's losses.
SLACK = 0.05
# Bytes a weight: 4 bits and a float32 scale for each block of 64; with double quantization the scales take 8 bits and
# a float32 for each 256 of them. int8 has a float32 for each row, which is next to nothing.
QUANTIZED_BYTES = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int4": 0.5 + 4 / 64, "int8": 1.0}
DOUBLE_QUANTIZED_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# Logits that are there at once, and the fewest tokens that they belong to, as modelkit.forwarding has it.
LOGITS_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 28}
LEAST_LOGIT_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by purpose."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.overhead


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a training runs: "cuda" or "cpu", on how many processes, and the most tokens that a sequence has."""

    device: str = "cuda"
    processes: int = 1
    longest: int = 0


@dataclass(frozen=True, slots=True)
class _Formats:
    """Bytes of a weight that is not quantized, and of a value that is computed."""

    weight: int
    compute: int


def memory(shape: Shape, finetune: Finetune, setting: Setting) -> Memory:
    """Memory of one device; of a CPU, that of all processes together."""
    training, parameters = finetune.training, finetune.language_model
    formats = _formats(training, parameters, setting.device, shape.dtype)
    trained = trained_tensors(shape, parameters)
    shares = setting.processes if training.parallelism == "FULLY_SHARDED" else 1
    activations = _activations(shape, finetune, formats, setting)
    weights = _weights(shape, parameters, formats) // shares
    gradients = gradient_bytes(training.optim, trained) // shares
    passing = _passing(shape, finetune, formats, setting, shares)
    overhead = CONTEXT_BYTES[setting.device] + passing + int(SLACK * (activations + gradients))
    copies = setting.processes if setting.device == "cpu" else 1
    return Memory(
        weights=weights * copies,
        gradients=gradients * copies,
        optimizer=state_bytes(training.optim, trained) // shares * copies,
        activations=activations * copies,
        overhead=overhead * copies,
    )


def weights_bytes(shape: Shape, finetune: Finetune, device: str) -> int:
    """The weights of a model alone, which no setting makes smaller but the method."""
    parameters = finetune.language_model
    return _weights(shape, parameters, _formats(finetune.training, parameters, device, shape.dtype))


def trained_tensors(shape: Shape, parameters: LanguageModel) -> list[Sizes]:
    """Shapes of the tensors that are trained: all, or the two factors of each adapted matrix."""
    if parameters.method == "FULL":
        return list(shape.tensors)
    rank = parameters.lora.r
    adapted = [matrix for matrix in (*shape.matrices, *shape.embeddings) if adapts(matrix, parameters.lora)]
    return [sizes for matrix in adapted for sizes in ((rank, matrix.inputs), (matrix.outputs, rank))]


def adapts(matrix: Matrix, lora: Lora) -> bool:
    """Whether a linear layer gets an adapter; without target_modules those of the blocks do."""
    if not lora.target_modules:
        return bool(matrix.path)
    whole = f".{matrix.path or matrix.name}"
    return any(whole.endswith(f".{target}") for target in lora.target_modules)


def _formats(training: Training, parameters: LanguageModel, device: str, stored: str) -> _Formats:
    """As recipes.precision chooses them: trained weights are float32, frozen ones have the format of the products."""
    compute = HALF if training.bf16 or (training.fp16 and device == "cuda") else FLOAT
    if parameters.method == "FULL":
        return _Formats(FLOAT, compute)
    if device == "cuda" and stored in HALF_FORMATS:
        compute = HALF
    return _Formats(compute, compute)


def _weights(shape: Shape, parameters: LanguageModel, formats: _Formats) -> int:
    linear = shape.linear_parameters
    other = (shape.parameters - linear) * formats.weight
    if parameters.method == "QLORA":
        return int(linear * _quantized(parameters.quantization)) + other
    if parameters.method == "LORA":
        adapters = sum(rows * columns for rows, columns in trained_tensors(shape, parameters))
        return linear * formats.weight + other + adapters * FLOAT
    copies = linear * formats.compute if formats.compute < formats.weight else 0  # autocast keeps them for the step
    return linear * formats.weight + other + copies


def _quantized(quantization: Quantization) -> float:
    if quantization.double_quant and quantization.type != "int8":
        return DOUBLE_QUANTIZED_BYTES
    return QUANTIZED_BYTES[quantization.type]


def _activations(shape: Shape, finetune: Finetune, formats: _Formats, setting: Setting) -> int:
    """What the largest batch keeps for its backward pass."""
    training, parameters = finetune.training, finetune.language_model
    tokens = _tokens(finetune, setting)
    block = _block_bytes(shape, parameters, formats, setting.device)
    stream = FLOAT if parameters.method == "FULL" else formats.compute
    blocks = shape.layers * block
    if training.gradient_checkpointing:  # the input of each block, and one block computed again
        blocks = shape.layers * shape.hidden * stream + block
    ends = shape.hidden * (2 * FLOAT + formats.compute)  # the embedding and the last normalization
    return tokens * int(blocks + ends)


def _tokens(finetune: Finetune, setting: Setting) -> int:
    """Tokens of the largest batch."""
    return finetune.training.per_device_train_batch_size * (setting.longest or finetune.language_model.max_seq_length)


def _block_bytes(shape: Shape, parameters: LanguageModel, formats: _Formats, device: str) -> int:
    """Bytes that one block keeps of one token.

    Normalizations compute in float32 and keep their input; attention keeps queries, keys, values and its result; a
    gated feed-forward keeps three wide vectors, a plain one four, because its activation function is written out in
    steps. A matrix with trained weights keeps its input.
    """
    width = formats.compute
    kept = shape.norm_width * FLOAT + 2 * (shape.attention_width + shape.key_value_width) * width
    kept += (3 if shape.gated else 4) * shape.intermediate * width
    if parameters.method == "FULL":
        kept += shape.norm_width * FLOAT  # for the gradient of the normalization's own weights
        return kept + _full_inputs(shape, width)
    return kept + _adapter_inputs(shape, parameters.lora, width, device)


def _full_inputs(shape: Shape, width: int) -> int:
    """Inputs of a block's matrices; each keeps a copy of its own when its input is cast to half precision."""
    inputs = [matrix.inputs for matrix in shape.block() if matrix.inputs == shape.hidden]
    shared = 2 if width == FLOAT else max(2, len(inputs) - 1)
    return (shared * shape.hidden + shape.intermediate) * width


def _adapter_inputs(shape: Shape, lora: Lora, width: int, device: str) -> int:
    """Inputs of a block's adapters: each its own once dropout or a cast made it differ from that of the others."""
    adapted = [matrix for matrix in shape.block() if adapts(matrix, lora)]
    inner = len(adapted) * lora.r * width
    if lora.dropout:
        mask = 1 if device == "cuda" else FLOAT
        return inner + sum(matrix.inputs for matrix in adapted) * (width + mask)
    if width == HALF:
        return inner + sum(matrix.inputs for matrix in adapted) * width
    shared = {(matrix.path.rpartition(".")[0], matrix.inputs) for matrix in adapted}
    return inner + sum(inputs for _, inputs in shared) * width


def _passing(shape: Shape, finetune: Finetune, formats: _Formats, setting: Setting, shares: int) -> int:
    """What is there for a moment: first the logits of a chunk, then the gradients of a block's activations; a quantized
    matrix made whole, a block that was gathered from all devices."""
    parameters = finetune.language_model
    flowing = _tokens(finetune, setting) * _block_bytes(shape, parameters, formats, setting.device)
    gathered = sum(matrix.size for matrix in shape.block()) * formats.compute if shares > 1 else 0
    largest = max((matrix.size for matrix in shape.matrices), default=0) * formats.compute
    logits = _logits(shape, finetune, formats, setting)
    return max(flowing, logits) + gathered + (largest if parameters.method == "QLORA" else 0)


def _logits(shape: Shape, finetune: Finetune, formats: _Formats, setting: Setting) -> int:
    """Logits as they are computed, their scores in float32, and, in half precision, copies for each way between."""
    if finetune.language_model.objective == "CLASSIFICATION":
        return 0
    most = max(LEAST_LOGIT_TOKENS, LOGITS_AT_ONCE[setting.device] // max(1, shape.vocab))
    width = 2 * FLOAT if formats.compute == FLOAT else 2 * FLOAT + 2 * HALF
    return min(_tokens(finetune, setting), most) * shape.vocab * width
