"""What follows a training: its checkpoints are compared, the model leaves as one GGUF file, and that file answers."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.cli.text import harmless, number
from tunesmith.cli.watching import TaskView
from tunesmith.client import Client, InvalidArgument, evaluation_request, export_request
from tunesmith.eval.v1.eval_service_pb2 import Evaluation
from tunesmith.task.v1 import task_pb2
from tunesmith.task.v1.task_pb2 import Task
from tunesmith_local.demo.errors import DemoFailed

SAMPLES = 20
ANSWER_TOKENS = 48
# The first is what most people want; rows of a small model may be too short for it.
QUANTIZATIONS = ("Q4_K_M", "Q8_0")


def follow(console: Console, client: Client, task: Task) -> Task:
    """Shows a task until it has ended. Raises DemoFailed when it did not complete."""
    with TaskView(console, task.name) as view:
        for response in client.tasks.watch(task.id):
            view.show(response.event)
    task = client.tasks.get(task.id)
    if task.state != task_pb2.STATE_COMPLETED:
        lines = [line.text for line in client.tasks.logs(task.id, tail=20).lines]
        raise DemoFailed("\n".join([f"{task.error.reason}: {task.error.message}", *task.error.problems, *lines]))
    return task


def evaluate(console: Console, client: Client, task: Task) -> None:
    """Scores the checkpoints and the base model on held-out rows and prints what is recommended. Raises DemoFailed."""
    parameters = {"max_samples": SAMPLES, "max_tokens": ANSWER_TOKENS}
    request = evaluation_request("stdlib-checkpoints", task.id, (), parameters, base_model=True)
    evaluation = follow(console, client, client.tasks.create(request))
    found = client.evaluations.get(evaluation.id)
    console.print(_scores(found))
    if not found.recommendation.text:
        raise DemoFailed("the evaluation recommends nothing")
    console.print(Text(harmless(found.recommendation.text), style="bold"))
    console.print(Text(f"The report, with all samples side by side: {evaluation.output_dir}/report.html", style="dim"))


def _scores(found: Evaluation) -> Table:
    """A row for each score, a column for each checkpoint."""
    titles = ["base model" if item.base_model else f"checkpoint {item.step}" for item in found.checkpoints]
    table = Table("score", *titles, box=None, pad_edge=False)
    for name in dict.fromkeys(value.name for item in found.checkpoints for value in item.values):
        values = [item.scores.get(name) for item in found.checkpoints]
        table.add_row(name.replace("_", " "), *("" if value is None else number(value) for value in values))
    table.add_row("total", *(number(item.total) for item in found.checkpoints), style="bold")
    return table


def export(console: Console, client: Client, task: Task, directory: Path) -> Path:
    """Exports the final model as one GGUF file and fetches it; where it lies. Raises DemoFailed."""
    created = _created(console, client, task)
    exported = follow(console, client, created)
    found = client.exports.get(exported.id)
    for check in found.checks:
        console.print(Text(f"  {'passed' if check.passed else 'FAILED'}  {harmless(check.text)}", style="dim"))
    name = next(artifact.name for artifact in found.artifacts if artifact.name.endswith(".gguf"))
    directory.mkdir(parents=True, exist_ok=True)
    path = client.exports.download(exported.id, name, directory)
    console.print(f"fetched and verified: {path}, {path.stat().st_size / 1e6:.1f} MB")
    return path


def _created(console: Console, client: Client, task: Task) -> Task:
    """The export of the first quantization that suits the model's shape. Raises DemoFailed."""
    for quantization in QUANTIZATIONS:
        request = export_request("stdlib-gguf", task.id, "gguf", [quantization])
        try:
            return client.tasks.create(request)
        except InvalidArgument as error:
            console.print(Text(f"{quantization} is refused: {harmless(error.message)}", style="dim"))
    raise DemoFailed("no quantization suits this model")


def ask(console: Console, gguf: Path, question: str) -> None:
    """Runs a GGUF file with llama.cpp and prints its answer. Raises DemoFailed when it says nothing."""
    from llama_cpp import Llama

    model: Any = Llama(str(gguf), n_ctx=512, verbose=False)
    conversation = [{"role": "user", "content": question}]
    answer = model.create_chat_completion(conversation, max_tokens=ANSWER_TOKENS, temperature=0.0, repeat_penalty=1.15)
    model.close()
    text = str(answer["choices"][0]["message"]["content"]).strip()
    if not text:
        raise DemoFailed(f"{gguf.name} answers nothing")
    console.print(Text(question, style="bold"))
    console.print(Text(harmless(text), style="green"))
