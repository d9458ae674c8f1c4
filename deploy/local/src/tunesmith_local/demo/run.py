"""The demonstration from nothing to answers, through the platform's own front door."""

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modelkit.scratch import ScratchModel, build
from tunesmith.cli.text import harmless, number
from tunesmith.client import Client
from tunesmith.task.v1.task_pb2 import Task
from tunesmith_local.demo.afterwards import ask, evaluate, export, follow
from tunesmith_local.demo.answers import answer
from tunesmith_local.demo.docstrings import Pair, collect, split, standard_library
from tunesmith_local.demo.errors import DemoFailed
from tunesmith_local.demo.pace import affordable_steps, seconds_per_step
from tunesmith_local.demo.platform import Platform
from tunesmith_local.errors import CannotStart
from tunesmith_local.layout import DataDirectory

CHECKPOINTS = 3
# Small, with one matrix for reading and writing words: that learns most from so little text in so little time.
MODEL: dict[str, Any] = {"family": "qwen2", "hidden_size": 128, "layers": 2, "vocab_size": 2048}
TRAINING: dict[str, Any] = {
    "method": "full",
    "per_device_train_batch_size": 32,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 40,
    "max_seq_length": 128,
    "logging_steps": 10,
    "save_total_limit": CHECKPOINTS,
}
EPOCHS = 8
LEAST_STEPS = 150
ROW_TOKENS = 48
OVERHEAD = 1.3  # reading rows, clipping gradients, logging
SHOWN = 4
CURVE_POINTS = 10
BAR = 40


def main(words: Sequence[str] | None = None) -> int:
    """Runs the demonstration; 0 when everything worked, 1 when something failed, 130 when it was interrupted."""
    options = parse(words)
    console = Console(highlight=False)
    started = time.monotonic()
    try:
        demonstrate(console, options)
    except (DemoFailed, CannotStart, httpx.HTTPError) as error:
        console.print(Text(f"The demonstration failed: {error}", style="red"))
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything is stopped.")
        return 130
    console.print(f"\nDone in {time.monotonic() - started:.0f} s. Everything is stopped.")
    return 0


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data/demo"), help="kept afterwards (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="port of the gateway (default: a free one)")
    parser.add_argument("--seconds", type=float, default=130, help="time for training, about (default: %(default)s)")
    return parser.parse_args(words)


def demonstrate(console: Console, options: argparse.Namespace) -> None:
    """Starts the platform, trains, stops it, and shows what was learnt. Raises DemoFailed."""
    data = DataDirectory(options.data_dir.absolute())
    with Platform(data.root, options.port) as platform, ThreadPoolExecutor(1) as background:
        console.rule("1. Model and data")
        training, held_out = write_dataset(data.datasets / "stdlib")
        model_dir = data.models / f"scratch-{time.strftime('%Y%m%d-%H%M%S')}"
        building = background.submit(build_model, model_dir, data.datasets / "stdlib" / "train.jsonl")
        console.print(f"{len(training)} questions and answers from {standard_library()}, {len(held_out)} more held out")
        pair = training[0]
        console.print(Text(f"  for example: {pair.question}\n               {pair.answer}", style="dim"))
        model = building.result()
        console.print(f"an untrained {model.family} model with {model.parameters / 1e6:.1f} M parameters: {model_dir}")

        console.rule("2. Platform")
        url = platform.wait()
        console.print(f"every process serves, at {url}; logs in {data.logs}")

        console.rule("3. Fine-tuning over HTTP")
        steps = choose_steps(console, model_dir, len(training), options.seconds)
        task_number = submit(console, url, platform.token(), model_dir, data.datasets / "stdlib", steps)
        with Client(url, platform.token()) as client:
            task = next(task for task in client.tasks.list() if task.number == task_number)
            task = follow(console, client, task)
            show_curve(console, client, task)

            console.rule("4. Which checkpoint is the best")
            evaluate(console, client, task)

            console.rule("5. A file that runs elsewhere")
            gguf = export(console, client, task, data.root / "exports")
    ask(console, gguf, training[0].question)

    console.rule("6. What it learnt")
    tuned = Path(task.output_dir)
    show_answers(console, model_dir, tuned, "Asked in training", training[:SHOWN])
    show_answers(console, model_dir, tuned, "Never seen", held_out[:SHOWN])
    console.print("A model this small, trained for minutes, learns the manner of the documentation, not its facts.")
    console.print(Text(f"\nThe tuned model: {tuned}\nThe same for llama.cpp: {gguf}"))
    console.print(Text(f"Its platform again: tunesmith up --data-dir {data.root}"))


def write_dataset(directory: Path) -> tuple[list[Pair], list[Pair]]:
    """Writes train.jsonl and valid.jsonl; the pairs of each. Raises DemoFailed when there are too few."""
    pairs = collect(standard_library())
    if len(pairs) < 1000:
        raise DemoFailed(f"only {len(pairs)} documented names below {standard_library()}; is the source installed?")
    training, held_out = split(pairs)
    directory.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", training), ("valid", held_out)):
        lines = [json.dumps(pair.row()) + "\n" for pair in part]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return training, held_out


def build_model(directory: Path, corpus: Path) -> ScratchModel:
    """An untrained model whose tokenizer knows the corpus."""
    return build(directory, corpus=corpus, **MODEL)


def choose_steps(console: Console, model: Path, rows: int, seconds: float) -> int:
    """The steps of all epochs, or as many as this machine does in the time."""
    batch: int = TRAINING["per_device_train_batch_size"]
    pace = OVERHEAD * seconds_per_step(model, batch, ROW_TOKENS)
    steps = affordable_steps(math.ceil(rows / batch) * EPOCHS, seconds, pace, LEAST_STEPS)
    console.print(f"this machine needs about {pace:.2f} s for a step: {steps} steps, {steps * batch / rows:.1f} epochs")
    return steps


def submit(console: Console, url: str, token: str, model: Path, dataset: Path, steps: int) -> int:
    """Creates the task as any HTTP client would; its number. Raises DemoFailed with the platform's answer."""
    body = {
        "name": "stdlib-docstrings",
        "description": "Answers in the manner of the standard library's documentation",
        "baseModel": str(model),
        "datasetPath": str(dataset),
        "trainingArgs": {**TRAINING, "max_steps": steps, "save_steps": math.ceil(steps / CHECKPOINTS)},
    }
    console.print(Text(f"POST {url}/finetuning/createTask\n{json.dumps(body, indent=2)}", style="dim"))
    answer = httpx.post(f"{url}/finetuning/createTask", json=body, headers={"x-token": token}, trust_env=False)
    document = answer.raise_for_status().json()
    if document["code"] != 0:
        raise DemoFailed(document["msg"])
    console.print(Text(json.dumps(document, ensure_ascii=False), style="dim"))
    return int(document["data"]["ID"])


def show_curve(console: Console, client: Client, task: Task) -> None:
    """Prints the loss as bars. Raises DemoFailed when it did not fall."""
    series = {item.name: item for item in client.tasks.metrics(task.id, ["loss"], max_points=CURVE_POINTS)}
    points = list(zip(series["loss"].steps, series["loss"].values, strict=True))
    most = max(value for _, value in points)
    table = Table("step", "loss", "", box=None, pad_edge=False)
    for step, value in points:
        table.add_row(str(step), number(value), Text("█" * round(BAR * value / most), style="cyan"))
    console.print(table)
    if points[-1][1] >= points[0][1]:
        raise DemoFailed(f"the loss did not fall: {number(points[0][1])} at first, {number(points[-1][1])} at last")


def show_answers(console: Console, base: Path, tuned: Path, title: str, pairs: Sequence[Pair]) -> None:
    """Prints what both models answer beside the documentation's own words."""
    questions = [pair.question for pair in pairs]
    styles = ("dim", "green", "")
    console.print(_columns("base model", "tuned model", "documentation", styles=("underline",) * 3, title=title))
    for pair, before, after in zip(pairs, answer(base, questions), answer(tuned, questions), strict=True):
        console.print(Text(pair.question, style="bold"))
        console.print(_columns(shorten(before) or "(nothing)", after or "(nothing)", pair.answer, styles=styles))


def _columns(*cells: str, styles: Sequence[str], title: str | None = None) -> Table:
    table = Table(box=None, show_header=False, expand=True, title=title, pad_edge=False)
    for _ in cells:
        table.add_column(ratio=1)
    table.add_row(*(Text(harmless(cell), style=style) for cell, style in zip(cells, styles, strict=True)))
    return table


def shorten(text: str, most: int = 80) -> str:
    """The start of a text."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else f"{flat[:most]}…"
