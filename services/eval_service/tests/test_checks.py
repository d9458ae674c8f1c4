"""What is wrong with an evaluation is found before it is accepted, all at once (T26, F40)."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval_service import suites
from eval_service.candidates import candidates_of, is_needed, missing_steps
from services.eval_service.tests.bench import Bench
from tunesmith.task.v1 import spec_pb2, task_service_pb2


def evaluation(**fields: Any) -> spec_pb2.EvaluateSpec:
    return spec_pb2.EvaluateSpec(source_task_id="a-training", **fields)


def problems(bench: Bench, spec: spec_pb2.EvaluateSpec, **parameters: Any) -> dict[str, str]:
    """Messages by field."""
    checked = bench.checks.check(spec, bench.source(bench.finetune(**parameters)))
    return {item.field: item.message for item in checked.problems}


def test_nothing_is_wrong_with_a_plain_evaluation(bench: Bench) -> None:
    checked = bench.checks.check(evaluation(include_base_model=True), bench.source())
    assert checked.problems == []
    assert checked.model_dir == bench.base
    assert checked.dataset is not None


def test_every_problem_is_told_at_once(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "data" / "empty").mkdir()
    spec = evaluation(
        scores=["perplexity", "beauty", "accuracy"],
        weights={"charm": 1.0, "perplexity": 0.0},
        min_samples=9,
        max_samples=3,
        embedding_model=str(tmp_path / "data" / "empty"),
        dataset=spec_pb2.DatasetSource(path=str(tmp_path / "data" / "nowhere.jsonl")),
    )
    found = problems(bench, spec)
    assert set(found) == {
        "evaluate.scores[1]",
        "evaluate.scores[2]",
        "evaluate.weights[charm]",
        "evaluate.weights",
        "evaluate.min_samples",
        "evaluate.embedding_model",
        "evaluate.dataset.path",
    }
    assert "semantic_similarity" in found["evaluate.scores[1]"]
    assert "does not fit" in found["evaluate.scores[2]"]
    assert "no config.json" in found["evaluate.embedding_model"]


def test_what_could_not_count_is_refused_instead_of_passed_over(bench: Bench, tmp_path: Path) -> None:
    found = problems(bench, evaluation(scores=["perplexity"], weights={"coverage": 1.0, "exact_match": 0.0}))
    assert set(found) == {"evaluate.weights[coverage]"}
    assert "not computed" in problems(bench, evaluation(weights={"accuracy": 1.0}))["evaluate.weights[accuracy]"]
    plain = tmp_path / "data" / "plain.jsonl"
    plain.write_text(json.dumps({"text": "a plain text"}) + "\n")
    own = spec_pb2.DatasetSource(path=str(plain))
    assert problems(bench, evaluation(dataset=own)) == {}
    found = problems(bench, evaluation(dataset=own, scores=["perplexity", "coverage"]))
    assert set(found) == {"evaluate.scores[1]"}
    assert "plain texts" in found["evaluate.scores[1]"]
    found = problems(bench, evaluation(dataset=own, weights={"coverage": 1.0, "perplexity": 0.0}))
    assert set(found) == {"evaluate.weights[coverage]", "evaluate.weights"}
    assert problems(bench, evaluation(dataset=own, weights={"perplexity": 1.0})) == {}


def test_rows_must_have_been_held_out_or_be_named(bench: Bench, tmp_path: Path) -> None:
    assert "name a dataset" in problems(bench, evaluation(), eval_ratio=0.0)["evaluate.split"]
    test = spec_pb2.EVALUATION_SPLIT_TEST
    assert "no test rows" in problems(bench, evaluation(split=test))["evaluate.split"]
    assert problems(bench, evaluation(split=test), test_ratio=0.2) == {}
    sample = tmp_path / "data" / "sample.jsonl"
    sample.write_text(json.dumps({"instruction": "a", "output": "b"}) + "\n")
    own = spec_pb2.DatasetSource(path=str(sample))
    assert problems(bench, evaluation(dataset=own), eval_ratio=0.0) == {}
    assert "has no such file" in problems(bench, evaluation(dataset=own, split=test))["evaluate.split"]
    bench.data.unlink()
    assert "cannot be read any more" in problems(bench, evaluation())["evaluate.split"]


def test_rows_of_another_dataset_are_checked(bench: Bench, tmp_path: Path) -> None:
    bad = tmp_path / "data" / "bad.jsonl"
    bad.write_text('{"instruction": "a", "output": "b"}\nnot json\n')
    found = problems(bench, evaluation(dataset=spec_pb2.DatasetSource(path=str(bad))))
    assert "line: 2" in found["evaluate.dataset.path"]


def test_what_cannot_be_evaluated(bench: Bench) -> None:
    other = task_service_pb2.TaskSource(task_id="x", spec=spec_pb2.TaskSpec(evaluate=evaluation()))
    (problem,) = bench.checks.check(evaluation(), other).problems
    assert problem.field == "evaluate.source_task_id"
    classes = {"objective": spec_pb2.OBJECTIVE_CLASSIFICATION}
    found = problems(bench, evaluation(include_base_model=True), **classes)
    assert "no classes" in found["evaluate.include_base_model"]
    gone = bench.finetune()
    gone.base_model = str(bench.root / "data" / "gone")
    (problem,) = bench.checks.check(evaluation(), bench.source(gone)).problems
    assert problem.message.startswith("the base model of the task cannot be used any more: '")


@pytest.mark.timeout(180)  # the harness is loaded
def test_suites_need_the_harness_and_their_data(bench: Bench) -> None:
    spec = evaluation(suites=["no_such_task_at_all"])
    (problem,) = bench.checks.check(spec, bench.source(), starts=True).problems
    expected = "has no task 'no_such_task_at_all'" if suites.is_installed() else "is not installed"
    assert problem.field == "evaluate.suites"
    assert expected in problem.message


def test_a_checkpoint_of_the_last_step_stands_for_the_final_model(bench: Bench) -> None:
    source = bench.source()
    source.checkpoints.add(step=30, prefix="c30")
    source.checkpoints.add(step=10, prefix="c10")
    source.output.CopyFrom(task_service_pb2.TaskOutput(prefix="final", step=30))
    assert [(item.step, item.prefix) for item in candidates_of(evaluation(), source)] == [(10, "c10"), (30, "c30")]
    source.output.step = 40
    assert [item.prefix for item in candidates_of(evaluation(), source)] == ["c10", "c30", "final"]
    named = evaluation(checkpoint_steps=[40, 20])
    assert [item.prefix for item in candidates_of(named, source)] == ["final"]
    assert missing_steps(named, source) == [20]


def test_only_what_a_model_is_made_of_is_fetched() -> None:
    needed = ("adapter_model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja")
    assert all(map(is_needed, needed))
    assert not any(map(is_needed, ("optimizer.pt", "merged/model.safetensors", "runs/events.out", "rng_state.pt")))
