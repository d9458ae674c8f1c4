"""lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness) as an optional part of an evaluation.

It runs only when it is installed and the data of the tasks is on this machine; nothing is downloaded.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

PACKAGE = "lm_eval"
BATCH = 8
# What the harness tells of a task beside its metrics.
NO_SCORES = ("sample_len",)


def is_installed() -> bool:
    """Whether lm-evaluation-harness can be used."""
    return find_spec(PACKAGE) is not None


def problems(names: Sequence[str]) -> Iterator[str]:
    """Why tasks cannot be run on this machine. Slow: the harness is imported, with all it needs."""
    if not names:
        return
    if not is_installed():
        yield "lm-evaluation-harness is not installed on this machine; install lm-eval, or leave suites out"
        return
    manager: Any = import_module("lm_eval.tasks").TaskManager()
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            yield f"lm-evaluation-harness has no task {name!r}; `lm-eval ls tasks` lists them"
        elif missing := _missing_data(manager, name):
            yield f"the data of task {name!r} is not on this machine, and nothing is downloaded: {missing}"


def run(names: Sequence[str], model: Any, tokenizer: Any, between: Callable[[], None]) -> dict[str, float]:
    """The results of tasks by "<task>/<metric>" for a model in memory.

    between is called before each forward pass. Raises what it and the harness raise.
    """
    if model.config._attn_implementation == "segmented":
        model.set_attn_implementation("sdpa")
    harness: Any = import_module("lm_eval")
    wrapped = import_module("lm_eval.models.huggingface").HFLM(pretrained=model, tokenizer=tokenizer, batch_size=BATCH)
    hook = model.register_forward_pre_hook(lambda *_: between())
    try:
        answer = harness.simple_evaluate(model=wrapped, tasks=list(names), log_samples=False, bootstrap_iters=0)
    finally:
        hook.remove()
    return dict(_numbers(answer["results"]))


def stalled(names: Sequence[str], seconds: float) -> str:
    """What is said of tasks that hang."""
    return (
        f"suites: lm-evaluation-harness has asked the model nothing for {seconds:g} s while it ran {', '.join(names)}; "
        "leave out the suite that hangs, or raise TUNESMITH_SUITE_STALL_SECONDS where one prepares its data for longer"
    )


def _numbers(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for task, metrics in results.items():
        for metric, value in metrics.items():
            name = metric.removesuffix(",none")
            if isinstance(value, float) and "_stderr" not in metric and name not in NO_SCORES:
                yield f"{task}/{name}", float(value)


def _missing_data(manager: Any, name: str) -> str:
    """What of a task's data is not here; empty when it can be loaded."""
    try:
        manager.load_task_or_group([name])
    except Exception as error:  # noqa: BLE001 - a task is code and data of others; whatever it raises, it cannot run
        lines = str(error).strip().splitlines()
        return (lines[0] if lines else type(error).__name__)[:300]
    return ""


def main() -> None:
    """`python -m eval_service.suites TASK...` prints a JSON list of problems; libraries print to standard error."""
    answer = os.dup(1)
    os.dup2(2, 1)
    os.write(answer, json.dumps(list(problems(sys.argv[1:]))).encode() + b"\n")


if __name__ == "__main__":
    main()
