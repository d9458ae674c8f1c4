"""Defaults of evaluations and exports, and what speaks against them."""

from servicekit.errors import Problem
from services.task_service.tests.harness import Client, Service
from services.task_service.tests.source_tasks import evaluation, export, problems, training
from tunesmith.task.v1 import spec_pb2, task_pb2

GGUF = spec_pb2.EXPORT_FORMAT_GGUF
DEFAULT, USER = task_pb2.PARAMETER_SOURCE_DEFAULT, task_pb2.PARAMETER_SOURCE_USER


async def test_defaults_of_evaluations(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    sampling = spec_pb2.SamplingParameters(temperature=0.0)
    task = await alice.create(spec=evaluation(source.id, 10, sampling=sampling, min_samples=50))
    spec = task.spec.evaluate
    assert (spec.max_samples, spec.min_samples, spec.sample_ratio, spec.seed) == (50, 50, 0.3, 42)
    assert spec.split == spec_pb2.EVALUATION_SPLIT_AUTO
    assert (spec.sampling.temperature, spec.sampling.max_tokens, spec.sampling.top_k) == (0.0, 256, 20)
    assert (spec.sampling.top_p, spec.sampling.repetition_penalty, spec.sampling.seed) == (0.9, 1.1, 42)
    sources = task.parameter_sources
    assert (sources["evaluate.sampling.temperature"], sources["evaluate.sampling.top_k"]) == (USER, DEFAULT)
    assert (sources["evaluate.min_samples"], sources["evaluate.max_samples"]) == (USER, DEFAULT)
    plain = (await alice.create(spec=evaluation(source.id, max_samples=3))).spec.evaluate
    assert (plain.max_samples, plain.min_samples) == (3, 3)
    found = await problems(alice, evaluation(source.id, min_samples=9, max_samples=3))
    assert list(found) == ["spec.evaluate.min_samples"]


async def test_defaults_of_exports(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, end="completed")
    gguf = await alice.create(spec=export(source.id, form=GGUF))
    assert (list(gguf.spec.export.quantizations), gguf.spec.export.modelfile) == (["Q4_K_M"], True)
    assert gguf.parameter_sources["export.quantizations"] == DEFAULT
    merged = await alice.create(spec=export(source.id))
    assert (list(merged.spec.export.quantizations), merged.spec.export.HasField("modelfile")) == ([], False)


async def test_the_service_that_does_the_work_is_asked_with_the_source(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    await alice.create(spec=export(source.id, form=GGUF))
    asked = service.checker.sources[-1]
    assert asked is not None
    assert asked == await alice.source(source.id)
    assert list(service.checker.specs[-1].export.quantizations) == ["Q4_K_M"], "it sees the defaults"
    service.checker.found = [Problem("spec.export.quantizations[0]", "rows of 96 are not divisible by 256")]
    assert list(await problems(alice, export(source.id, form=GGUF))) == ["spec.export.quantizations[0]"]


async def test_a_dataset_for_the_importance_of_weights_must_be_there(service: Service, alice: Client) -> None:
    source, _ = await training(service, alice, 10, end="completed")
    data = spec_pb2.DatasetSource(dataset_id="e" * 26)
    found = await problems(alice, export(source.id, form=GGUF, importance_dataset=data))
    assert list(found) == ["spec.export.importance_dataset.dataset_id"]
