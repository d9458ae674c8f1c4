"""How many tokens that count (no padding) a second does a CPU train on, against TRL's SFTTrainer?

Each peer is a process of its own; they take turns. A llama of about 40 million parameters, conversations of 0.3 of the
longest length on average, bfloat16 on float32 weights.

python -m benchmarks.throughput [FULL|LORA ...]
"""

import inspect
import json
import random
import statistics
import subprocess
import sys
import tempfile
import textwrap
from importlib import import_module
from pathlib import Path

from benchmarks.report import print_table, spread, verdict
from benchmarks.throughput_peers import LONGEST, PEERS
from modelkit.scratch import build

ROUNDS, STEPS, CONVERSATIONS = 5, 24, 1000
MEAN_LENGTH = 0.3 * LONGEST
CHARACTERS_PER_TOKEN = 4.0
SOURCES = (
    *("argparse", "ast", "asyncio.base_events", "decimal", "difflib", "email.message", "inspect", "logging", "mailbox"),
    *("optparse", "pathlib", "pdb", "smtplib", "subprocess", "tarfile", "typing", "unittest.mock"),
)
SMOOTHING = 8


def write_conversations(path: Path) -> None:
    """Pieces of the standard library's sources to go on with; their lengths are distributed log-normally."""
    chance = random.Random(0)
    text = "\n".join(inspect.getsource(import_module(name)) for name in SOURCES)
    with path.open("w") as file:
        for _ in range(CONVERSATIONS):
            length = chance.lognormvariate(-0.18, 0.6) * MEAN_LENGTH * CHARACTERS_PER_TOKEN
            start = chance.randrange(len(text) - int(length) - 1)
            piece = textwrap.dedent(text[start : start + max(40, int(length))])
            cut = len(piece) // 4
            file.write(json.dumps({"instruction": piece[:cut], "output": piece[cut:] or "pass"}) + "\n")


def run(peer: str, method: str, model: Path, dataset: Path) -> tuple[float, list[float]]:
    """Tokens a second and the loss of each step."""
    with tempfile.TemporaryDirectory() as output:
        arguments = [peer, method, str(model), str(dataset), output, str(STEPS)]
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.throughput_peers", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{peer} failed: {done.stderr[-2000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found["tokens_per_second"], found["losses"]


def difference(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference of two curves, each a running mean."""
    pairs = zip(smooth(ours), smooth(theirs), strict=True)
    return max(abs(one - other) / other for one, other in pairs)


def smooth(curve: list[float]) -> list[float]:
    """Means of so many neighbours."""
    return [statistics.mean(curve[start : start + SMOOTHING]) for start in range(len(curve) - SMOOTHING + 1)]


def compare(method: str, model: Path, dataset: Path) -> None:
    """All peers in turns, then a table."""
    rates: dict[str, list[float]] = {peer: [] for peer in PEERS}
    curves: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for peer in PEERS:
            rate, curves[peer] = run(peer, method, model, dataset)
            rates[peer].append(rate)
    rows = [[peer, len(found), spread(found), ""] for peer, found in rates.items()]
    for ours, theirs, least in (("tunesmith", "trl", 2.0), ("tunesmith packed", "trl tuned", 1.3)):
        ratio = statistics.median(rates[ours]) / statistics.median(rates[theirs])
        rows.append([f"{ours} / {theirs}", "", f"{ratio:.2f}", verdict(ratio, least, at_most=False)])
        apart = difference(curves[ours], curves[theirs])
        rows.append([f"greatest difference of their losses, {SMOOTHING} steps' mean", "", f"{apart:.2%}", ""])
    print_table(f"Tokens a second, {method}", ["", "runs", "median (least to greatest)", "figure"], rows)


def main(methods: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        dataset, model = Path(directory) / "train.jsonl", Path(directory) / "model"
        write_conversations(dataset)
        build(model, family="llama", corpus=dataset, hidden_size=512, layers=10, vocab_size=8192)
        for method in methods:
            compare(method, model, dataset)


if __name__ == "__main__":
    main(sys.argv[1:] or ["FULL", "LORA"])
