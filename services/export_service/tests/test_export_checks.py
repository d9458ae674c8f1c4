"""What speaks against an export is told at submit, all of it at once (row C44; bad inputs 48, 59)."""

import shutil
from pathlib import Path

import pytest

from export_service.checks import CheckedExport
from export_service.disk import MEBIBYTE, Amounts, Places, amounts, shortages
from modelkit.scratch import build
from services.export_service.tests.bench import Bench
from services.export_service.tests.trained import CORPUS, trained_adapter
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2

ADAPTER, MERGED = spec_pb2.EXPORT_FORMAT_ADAPTER, spec_pb2.EXPORT_FORMAT_MERGED
GGUF, GGUF_BASE = spec_pb2.EXPORT_FORMAT_GGUF, spec_pb2.EXPORT_FORMAT_GGUF_BASE
GGUF_ADAPTER = spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER
Source = task_service_pb2.TaskSource


def spec(form: int, **more: object) -> spec_pb2.ExportSpec:
    return spec_pb2.ExportSpec(source_task_id="a-training", format=form, **more)  # type: ignore[arg-type]


def fields(checked: CheckedExport) -> set[str]:
    return {problem.field for problem in checked.problems}


def text(checked: CheckedExport) -> str:
    return "\n".join(str(problem) for problem in checked.problems)


@pytest.mark.parametrize("form", [ADAPTER, MERGED, GGUF, GGUF_BASE, GGUF_ADAPTER])
@pytest.mark.parametrize("step", [0, 8])
async def test_every_form_of_a_checkpoint_and_of_the_final_model_can_start(
    bench: Bench, source: Source, form: int, step: int
) -> None:
    checked = await bench.checks.check(spec(form, checkpoint_step=step), source)
    assert text(checked) == ""
    assert checked.types == (["Q4_K_M"] if form in (GGUF, GGUF_BASE) else [])
    assert (checked.stored is None) == (form == GGUF_BASE)


async def test_all_problems_are_told_at_once(bench: Bench, source: Source) -> None:
    wrong = spec(GGUF, checkpoint_step=9, quantizations=["Q8_0", "Q9_9"], output_dir="/etc/exports")
    checked = await bench.checks.check(wrong, source)
    assert fields(checked) == {"export.checkpoint_step", "export.quantizations[1]", "export.output_dir"}
    assert "no stored checkpoint of step 9; it has 8" in text(checked)
    assert "'Q9_9' is not a type of GGUF files" in text(checked)


async def test_types_belong_to_gguf_files_alone(bench: Bench, source: Source) -> None:
    checked = await bench.checks.check(spec(MERGED, quantizations=["Q8_0"]), source)
    assert fields(checked) == {"export.quantizations"}


async def test_what_belongs_to_gguf_files_alone_is_refused_elsewhere(bench: Bench, source: Source) -> None:
    rows = spec_pb2.DatasetSource(path="rows.jsonl")
    for form in (ADAPTER, MERGED, GGUF_ADAPTER):
        checked = await bench.checks.check(spec(form, modelfile=True, importance_dataset=rows), source)
        assert {"export.modelfile", "export.importance_dataset"} <= fields(checked)
        assert text(await bench.checks.check(spec(form, modelfile=False), source)) == ""


@pytest.mark.parametrize("form", [ADAPTER, GGUF_ADAPTER])
async def test_a_full_training_has_no_adapter(bench: Bench, base: Path, form: int) -> None:
    source = bench.source(bench.finetune(method=spec_pb2.METHOD_FULL))
    await bench.finish(source, base, 12)
    assert "no adapter" in text(await bench.checks.check(spec(form), source))
    assert text(await bench.checks.check(spec(MERGED), source)) == ""


async def test_a_classifier_has_no_gguf(bench: Bench, source: Source) -> None:
    source.spec.finetune.language_model.objective = spec_pb2.OBJECTIVE_CLASSIFICATION
    assert "text classifier" in text(await bench.checks.check(spec(GGUF), source))


async def test_rows_that_no_k_quant_fits_are_refused(bench: Bench, tmp_path: Path) -> None:
    narrow = build(tmp_path / "data" / "narrow", hidden_size=64, layers=1, vocab_size=320, corpus=[CORPUS]).directory
    source = bench.source(bench.finetune())
    source.spec.finetune.base_model = str(narrow)
    await bench.finish(source, trained_adapter(narrow, tmp_path / "adapter"), 12)
    checked = await bench.checks.check(spec(GGUF, quantizations=["Q4_K_M", "Q8_0"]), source)
    assert fields(checked) == {"export.quantizations[0]"}
    assert "divisible by 256" in text(checked)


async def test_types_that_want_an_importance_matrix_need_text(bench: Bench, source: Source) -> None:
    wanted = spec(GGUF, quantizations=["IQ2_S"])
    assert text(await bench.checks.check(wanted, source)) == ""
    bench.data.unlink()
    assert "importance matrix" in text(await bench.checks.check(wanted, source))
    named = spec_pb2.DatasetSource(path="nowhere.jsonl")
    checked = await bench.checks.check(spec(GGUF, quantizations=["Q8_0"], importance_dataset=named), source)
    assert fields(checked) == {"export.importance_dataset"}


async def test_a_family_that_llama_cpp_does_not_know_is_refused(bench: Bench, source: Source, base: Path) -> None:
    other = bench.root / "data" / "other"
    shutil.copytree(base, other)
    config = (other / "config.json").read_text().replace('"model_type": "llama"', '"model_type": "bloom"')
    (other / "config.json").write_text(config)
    source.spec.finetune.base_model = str(other)
    checked = await bench.checks.check(spec(GGUF), source)
    assert fields(checked) == {"export.format"}
    assert text(await bench.checks.check(spec(ADAPTER), source)) == ""


async def test_what_is_not_stored_or_damaged_is_refused(bench: Bench, source: Source) -> None:
    prefix = source.checkpoints[0].prefix
    wanted = spec(MERGED, checkpoint_step=8)
    await bench.store.put_bytes(f"{prefix}/adapter_model.safetensors", b"short")
    assert "adapter_model.safetensors is truncated" in text(await bench.checks.check(wanted, source))
    await bench.store.put_bytes(f"{prefix}/manifest.json", b"{}")
    assert "SHA-256 that was recorded" in text(await bench.checks.check(wanted, source))
    await bench.store.delete(f"{prefix}/manifest.json")
    assert "manifest.json is missing from the object store" in text(await bench.checks.check(wanted, source))


async def test_a_base_model_that_is_gone_is_told(bench: Bench, source: Source) -> None:
    source.spec.finetune.base_model = "meta/never-here"
    checked = await bench.checks.check(spec(MERGED), source)
    assert fields(checked) == {"export.source_task_id"}
    assert "not on this machine" in text(checked)
    assert text(await bench.checks.check(spec(ADAPTER), source)) == ""


async def test_the_output_of_another_task_is_a_base_model(bench: Bench, source: Source, base: Path) -> None:
    source.spec.finetune.base_model = "task:a-base"
    assert "not stored any more" in text(await bench.checks.check(spec(MERGED), source))
    source.base_model_prefix = (await bench.upload(base, "output", task="a-base")).prefix
    checked = await bench.checks.check(spec(GGUF), source)
    assert text(checked) == "" and checked.base_manifest is not None


async def test_a_task_that_still_runs_may_bring_its_model_yet(bench: Bench) -> None:
    source = bench.source()
    assert "has no final model" in text(await bench.checks.check(spec(MERGED), source))
    source.state = task_pb2.STATE_RUNNING
    assert text(await bench.checks.check(spec(MERGED), source)) == ""


async def test_a_directory_with_other_files_is_refused_but_a_task_may_replace_its_own(
    bench: Bench, source: Source, tmp_path: Path
) -> None:
    target = tmp_path / "data" / "exports"
    target.mkdir()
    assert text(await bench.checks.check(spec(MERGED, output_dir=str(target)), source)) == ""
    (target / "notes.txt").write_text("mine")
    assert "is not empty" in text(await bench.checks.check(spec(MERGED, output_dir=str(target)), source))
    (target / ".tunesmith.json").write_text('{"task_id": "an-export"}')
    checked = await bench.checks.check(spec(MERGED, output_dir=str(target)), source, task_id="an-export")
    assert checked.output_dir == target and text(checked) == ""


async def test_a_disk_that_is_too_small_is_told_with_what_is_needed_and_free(bench: Bench, source: Source) -> None:
    bench.free = 5 * MEBIBYTE
    told = text(await bench.checks.check(spec(MERGED), source))
    assert "is too small: the export needs about" in told and "5 MiB are free" in told
    assert told.endswith("are free; make room there")
    small = await bench.checks.check(spec(GGUF, quantizations=["F16"]), source)
    assert text(small).endswith("are free; make room there, or choose fewer or smaller types")


def test_what_an_export_writes_is_counted_for_each_file_system(tmp_path: Path) -> None:
    found = amounts(spec(GGUF), ["Q4_K_M"], fetched=10, adapter=10, weights=1000, parameters=500)
    assert found.passing == 1000
    assert amounts(spec(GGUF), ["Q8_0"], fetched=10, adapter=10, weights=1000, parameters=500).passing == 0
    places = Places(tmp_path / "work", tmp_path / "outputs", tmp_path / "objects")
    told = list(shortages(Amounts(10, 20, 30), places, free=lambda _: 89))
    assert [(shortage.needed, shortage.free) for shortage in told] == [(90, 89)]
    assert not list(shortages(Amounts(10, 20, 30), places, free=lambda _: 90))
