"""The parameters that this surface takes: those of the platform's table, under all of their names."""

from parameterkit import BY_NAME, PARAMETERS, defaults

SURFACE = "finetuning"
TRAINING_ARGS, GPU_CONFIG = "trainingArgs", "gpuConfig"
CUDA_DEVICES = "cuda_visible_devices"

# What this surface fills in where its caller says nothing.
DEFAULTS = defaults(SURFACE)

_DEVICES = (CUDA_DEVICES, "memory_optimization", "processes")
# A task's document names these at its top.
_ELSEWHERE = ("base_model", "train_file", "output_dir")
DEVICE_ARGUMENTS = tuple(BY_NAME[name] for name in _DEVICES)
ARGUMENTS = tuple(row for row in PARAMETERS if row.name not in (*_DEVICES, *_ELSEWHERE))
DEVICE_NAMES = tuple(name for row in DEVICE_ARGUMENTS for name in row.names)
KNOWN_NAMES = tuple(name for row in ARGUMENTS for name in row.names)
