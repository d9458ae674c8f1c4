"""How long does it take to merge an adapter into its base model on disk, and in how much memory, against PEFT?

A llama of about half a billion parameters in bfloat16 with random weights, and an adapter of rank 16 on each of its
linear layers. PEFT loads both, merges and unloads, and saves what is left; Tunesmith streams. Each is a process of its
own; they take turns, the base model's files are in the page cache before each, and each is done when its result is on
disk. Imports are not counted in the times, but in the memory.

python -m benchmarks.merge
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, spread, verdict

ROUNDS = 5
FASTER, MEMORY_SHARE = 1.7, 0.25
MEBIBYTE = 1 << 20
SHAPE: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1280,
    "intermediate_size": 3584,
    "num_hidden_layers": 20,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "tie_word_embeddings": False,
}


def prepare(base: Path, adapter: Path) -> None:
    """Writes the model and an adapter whose weights do something."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model = model.to(torch.bfloat16)
    model.save_pretrained(base)
    adapted: Any = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(adapter)


def ours(base: Path, adapter: Path, target: Path) -> float:
    """Seconds of the streaming merge, which ends when everything is on disk."""
    from modelkit.merging import merge

    began = time.monotonic()
    merge(base, adapter, target)
    return time.monotonic() - began


def theirs(base: Path, adapter: Path, target: Path) -> float:
    """Seconds of PEFT's, brought to disk as well."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    began = time.monotonic()
    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16), adapter)
    model.merge_and_unload().save_pretrained(target)
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return time.monotonic() - began


SIDES = {"tunesmith": ours, "peft": theirs}


def measure(side: str, base: Path, adapter: Path, target: Path) -> dict[str, float]:
    """One merge in a process of its own."""
    for path in (*base.iterdir(), *adapter.iterdir()):
        path.read_bytes()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.merge", side, str(base), str(adapter), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def farthest(results: list[Path], base: Path, adapter: Path) -> list[float]:
    """How far the farthest weight of each result lies from the sum in float64, in units of bfloat16."""
    import torch
    from safetensors.torch import load_file

    before, *merged = (load_file(folder / "model.safetensors") for folder in (base, *results))
    factors = load_file(adapter / "adapter_model.safetensors")
    worst = [0.0] * len(results)
    for name in factors:
        if ".lora_A." not in name:
            continue
        update = 2 * factors[name.replace("_A", "_B")].double() @ factors[name].double()
        weight = f"{name.removeprefix('base_model.model.').partition('.lora_A')[0]}.weight"
        exact = before[weight].double() + update
        unit = 2.0 ** torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) * 2.0**-7
        for number, weights in enumerate(merged):
            worst[number] = max(worst[number], float(((weights[weight].double() - exact).abs() / unit).max()))
    return worst


def main() -> None:
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        base, adapter = folder / "base", folder / "adapter"
        prepare(base, adapter)
        for number in range(ROUNDS):
            for side in SIDES:
                found[side].append(measure(side, base, adapter, folder / f"{side}-{number}"))
        errors = farthest([folder / f"{side}-0" for side in SIDES], base, adapter)
    rows = []
    for (side, runs), error in zip(found.items(), errors, strict=True):
        rows.append([f"{side}: seconds", spread([run["seconds"] for run in runs]), ""])
        rows.append([f"{side}: peak memory (MiB)", spread([run["peak"] / MEBIBYTE for run in runs]), ""])
        rows.append([f"{side}: farthest from float64 (units of bfloat16)", f"{error:.3f}", ""])
    seconds, peaks = (
        {side: statistics.median(run[what] for run in runs) for side, runs in found.items()}
        for what in ("seconds", "peak")
    )
    ratio, share = seconds["peft"] / seconds["tunesmith"], peaks["tunesmith"] / peaks["peft"]
    rows.append(["peft / tunesmith, seconds", f"{ratio:.2f}", verdict(ratio, FASTER, at_most=False)])
    rows.append(["tunesmith / peft, peak memory", f"{share:.3f}", verdict(share, MEMORY_SHARE, at_most=True)])
    print_table("Merge of 0.5 billion parameters in bfloat16", ["", "median (least to greatest)", "figure"], rows)


def run_side(side: str, base: str, adapter: str, target: str) -> None:
    """Prints what one side took."""
    seconds = SIDES[side](Path(base), Path(adapter), Path(target))
    status = Path("/proc/self/status").read_text()  # getrusage also counts what the parent had in memory
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in SIDES:
        run_side(*sys.argv[1:5])
    else:
        main()
