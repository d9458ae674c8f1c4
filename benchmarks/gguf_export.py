"""How long does it take from an adapter to a Q8_0 GGUF file, and how much disk, against the public tools in a row?

The model and the adapter are those of merge.py, with a tokenizer. The public tools are PEFT (merge and save) and
llama.cpp's convert_hf_to_gguf.py and quantizer; what one has made is deleted once the next has read it. Tunesmith
writes the file from base and adapter. Each step is a process of its own; imports are not counted; the sides take turns,
the base model's files are in the page cache before each. Once, the file is compared byte by byte with what llama.cpp's
converter and quantizer make of the model that Tunesmith merges.

The converter is no package; it lies in the source archive of llama-cpp-python:

pip download --no-deps --no-binary :all: llama-cpp-python   # then unpack the archive
python -m benchmarks.gguf_export ARCHIVE/vendor/llama.cpp/convert_hf_to_gguf.py
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

from benchmarks.merge import SHAPE, prepare, theirs
from benchmarks.report import print_table, spread, verdict

ROUNDS = 5
FASTER, DISK_SHARE = 3.0, 0.35
KIND = "Q8_0"
MEBIBYTE = 1 << 20
LOOK_SECONDS = 0.02


def add_tokenizer(base: Path, adapter: Path, folder: Path) -> None:
    """Gives the model a tokenizer of its family with a chat template."""
    from modelkit import scratch

    texts = [path.read_text() for path in sorted(Path(json.__file__).parents[1].glob("*.py"))[:60]]
    scratch.build(folder, family="llama", hidden_size=32, layers=1, vocab_size=8192, corpus=texts)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(folder / name, base / name)
        shutil.copyfile(folder / name, adapter / name)


def export(base: Path, adapter: Path, target: Path) -> float:
    """Seconds of ours."""
    from export_service.gguf import GgufJob, write

    began = time.monotonic()
    write(GgufJob(base, adapter, target, "m", [KIND]))
    return time.monotonic() - began


def merge_with_peft(base: Path, adapter: Path, target: Path) -> float:
    """Seconds of PEFT's merge."""
    seconds = theirs(base, adapter, target)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(adapter / name, target / name)
    return seconds


def convert(script: Path, model: Path, target: Path) -> float:
    """Seconds of llama.cpp's converter, in the type that the model is stored in."""
    sys.path.insert(0, str(script.parent))
    import convert_hf_to_gguf as converter  # type: ignore[import-not-found, unused-ignore]
    from conversion.base import TextModel  # type: ignore[import-not-found, unused-ignore]

    TextModel.get_vocab_base_pre = lambda *_: "smaug-bpe"  # it knows tokenizers by what they make of one text
    sys.argv = ["convert", str(model), "--outfile", str(target), "--outtype", "bf16"]
    began = time.monotonic()
    converter.main()
    _to_disk(target)
    return time.monotonic() - began


def quantize(source: Path, target: Path) -> float:
    """Seconds of llama.cpp's quantizer."""
    import llama_cpp

    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    began = time.monotonic()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), parameters):
        raise SystemExit("llama.cpp could not quantize")
    _to_disk(target)
    return time.monotonic() - began


STEPS: dict[str, Callable[..., float]] = {
    "export": export,
    "merge": merge_with_peft,
    "convert": convert,
    "quantize": quantize,
}


def step(name: str, *paths: Path) -> float:
    """Seconds of a step in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gguf_export", name, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def public(script: Path, base: Path, adapter: Path, work: Path) -> float:
    """Seconds of the public tools one after the other."""
    merged, converted = work / "merged", work / "converted.gguf"
    seconds = step("merge", base, adapter, merged)
    seconds += step("convert", script, merged, converted)
    shutil.rmtree(merged)
    seconds += step("quantize", converted, work / "public.gguf")
    converted.unlink()
    return seconds


def with_disk(work: Path, what: Callable[[], float]) -> dict[str, float]:
    """Seconds, and the most bytes that lay in a directory meanwhile."""
    work.mkdir()
    most, done = 0, Event()

    def look() -> None:
        nonlocal most
        while not done.wait(LOOK_SECONDS):
            most = max(most, _bytes_in(work))

    looker = Thread(target=look)
    looker.start()
    seconds = what()
    done.set()
    looker.join()
    most = max(most, _bytes_in(work))
    shutil.rmtree(work)
    return {"seconds": seconds, "disk": most}


def equal_tensors(script: Path, base: Path, adapter: Path, work: Path) -> str:
    """Whether the file equals what llama.cpp's tools make of the same merged model."""
    from gguf import GGUFReader

    from modelkit.merging import merge

    work.mkdir()
    step("export", base, adapter, work)
    merge(base, adapter, work / "merged")
    step("convert", script, work / "merged", work / "converted.gguf")
    step("quantize", work / "converted.gguf", work / "theirs.gguf")
    ours, others = (
        {tensor.name: (tensor.tensor_type, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}
        for path in (work / f"m-{KIND}.gguf", work / "theirs.gguf")
    )
    same = sum(ours.get(name) == value for name, value in others.items())
    return f"{same} of {len(others)}" + ("" if ours.keys() == others.keys() else ", and other names")


def main(script: Path) -> None:
    found: dict[str, list[dict[str, float]]] = {"tunesmith": [], "public tools": []}
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        base, adapter, work = folder / "base", folder / "adapter", folder / "work"
        prepare(base, adapter)
        add_tokenizer(base, adapter, folder / "small")
        for _ in range(ROUNDS):
            for side, runs in found.items():
                for path in (*base.iterdir(), *adapter.iterdir()):
                    path.read_bytes()
                what = (
                    (lambda: step("export", base, adapter, work))
                    if side == "tunesmith"
                    else (lambda: public(script, base, adapter, work))
                )
                runs.append(with_disk(work, what))
        same = equal_tensors(script, base, adapter, work)
    rows = []
    for side, runs in found.items():
        rows.append([f"{side}: seconds", spread([run["seconds"] for run in runs]), ""])
        rows.append([f"{side}: most on disk (MiB)", spread([run["disk"] / MEBIBYTE for run in runs]), ""])
    seconds, disk = (
        {side: statistics.median(run[what] for run in runs) for side, runs in found.items()}
        for what in ("seconds", "disk")
    )
    ratio = seconds["public tools"] / seconds["tunesmith"]
    share = disk["tunesmith"] / disk["public tools"]
    rows.append(["public tools / tunesmith, seconds", f"{ratio:.2f}", verdict(ratio, FASTER, at_most=False)])
    rows.append(["tunesmith / public tools, disk", f"{share:.3f}", verdict(share, DISK_SHARE, at_most=True)])
    rows.append(["tensors equal to llama.cpp's", same, ""])
    title = f"Adapter to {KIND}, a model {SHAPE['num_hidden_layers']} layers deep and {SHAPE['hidden_size']} wide"
    print_table(title, ["", "median (least to greatest)", "figure"], rows)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in STEPS:
        print(STEPS[sys.argv[1]](*map(Path, sys.argv[2:])))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]).resolve())
    else:
        raise SystemExit(__doc__)
