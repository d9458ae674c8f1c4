"""Environment of the machine-learning libraries, set in one place before any of them is imported."""

import logging
import os

VARIABLES = {
    # No model or data hub is ever asked; what is not on this machine is an error.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    # Many rows are tokenised by threads of our own, each of which does all there is to do for some of them; the
    # tokenizers' threads would leave cores idle between two batches. Elsewhere texts are few.
    "TOKENIZERS_PARALLELISM": "false",
    # Asking for devices must not start CUDA in a process that forks.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    # Data-parallel processes of a job are on one machine.
    "GLOO_SOCKET_IFNAME": "lo",
}
DEFAULTS = {
    # Threads that wait for each other by spinning stand still when something else has their core: with two jobs on
    # two cores a step took fifty times as long. A short spin keeps what spinning is good for.
    "GOMP_SPINCOUNT": "2000",
}


def apply() -> None:
    """Sets VARIABLES whatever the process was started with, and of DEFAULTS what it was started without.

    Also keeps what means nothing to the reader of a task's log out of it.
    """
    os.environ.update(VARIABLES)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # It warns of optional kernels that nothing here needs, and of each product that it rounds, as quantizing does.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
