"""Supervised fine-tuning of a language model, full and LoRA (F24, F25, F30, F33, T15, C38, C39, C40)."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modelkit.errors import InvalidDataset, InvalidModel
from trainer_service.recipes.errors import CheckpointUnusable, LossDiverged
from workerkit.child.errors import InvalidJob, OutputExists
from workerkit.child.stopping import StopRequest

from .conftest import JobFactory, Recorder, run

CHECKPOINT_STATE = {
    "optimizer.pt",
    "scheduler.pt",
    "scaler.pt",
    "rng_state.pt",
    "trainer_state.json",
    "training_args.bin",
}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"}
ADAPTER = {"adapter_model.safetensors", "adapter_config.json", "generation_config.json"}
MODEL = {"model.safetensors", "config.json", "generation_config.json"}
FULL = {"method": "METHOD_FULL"}
SAVING = {"save_strategy": "INTERVAL_STRATEGY_STEPS", "save_steps": 3}
METRICS = {
    "loss",
    "perplexity",
    "grad_norm",
    "learning_rate",
    "epoch",
    "tokens_per_second",
    "samples_per_second",
    "memory_bytes",
    "memory_peak_bytes",
}
RUNS = {"runs", "origin.json"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (folder / "adapter_model.safetensors").exists() else "model.safetensors"
    return load_file(folder / name)


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("family", ["llama", "qwen2", "glm4"])
@pytest.mark.parametrize("method", ["METHOD_LORA", "METHOD_FULL"])
def test_every_family_learns(jobs: JobFactory, tiny_models: dict[str, Path], family: str, method: str) -> None:
    job = jobs(
        model_dir=str(tiny_models[family]),
        training={"max_steps": 12, "learning_rate": 2e-2},
        language_model={"method": method},
    )
    events = run(job)
    curve = events.curve()
    assert list(curve) == list(range(1, 13))
    assert curve[12] < curve[1] - 0.2
    assert set(events.of("metrics")[0]["values"]) == METRICS
    assert events.kinds()[-1] == "done"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # within PEFT
def test_lora_leaves_checkpoints_and_an_adapter_that_peft_loads(jobs: JobFactory) -> None:
    job = jobs(training=SAVING)
    events = run(job)
    saved = [Path(event["path"]) for event in events.of("checkpoint")]
    assert [path.name for path in saved] == ["checkpoint-3", "checkpoint-6"]
    assert all(names(path) == CHECKPOINT_STATE | TOKENIZER | ADAPTER for path in saved)
    assert names(job.output_dir) == TOKENIZER | ADAPTER | RUNS
    assert events.of("done")[0]["path"] == str(job.output_dir)
    model = AutoPeftModelForCausalLM.from_pretrained(job.output_dir)
    tokenizer = AutoTokenizer.from_pretrained(job.output_dir)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say 3"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] > prompt["input_ids"].shape[1]
    assert same_weights(saved[-1], job.output_dir)
    assert {path.stat().st_mode & 0o777 for path in [*saved[-1].iterdir(), *job.output_dir.glob("*.*")]} == {0o644}


def test_full_leaves_checkpoints_and_a_model_that_transformers_loads(jobs: JobFactory) -> None:
    job = jobs(training=SAVING, language_model=FULL)
    events = run(job)
    last = Path(events.of("checkpoint")[-1]["path"])
    assert names(last) == CHECKPOINT_STATE | TOKENIZER | MODEL
    assert names(job.output_dir) == TOKENIZER | MODEL | RUNS
    assert same_weights(last, job.output_dir)
    trained = AutoModelForCausalLM.from_pretrained(job.output_dir)
    base = AutoModelForCausalLM.from_pretrained(job.model_dir)
    changed = [not torch.equal(a, b) for a, b in zip(trained.parameters(), base.parameters(), strict=True)]
    assert all(changed)
    settings = torch.load(last / "training_args.bin", weights_only=True)
    assert settings["learning_rate"] == 5e-3


def test_a_finished_model_has_the_number_format_of_its_base(jobs: JobFactory, tmp_path: Path) -> None:
    base = tmp_path / "half"
    shutil.copytree(jobs.model_dir, base)
    AutoModelForCausalLM.from_pretrained(jobs.model_dir, dtype=torch.bfloat16).save_pretrained(base)
    job = jobs(model_dir=str(base), training=SAVING, language_model=FULL)
    events = run(job)
    assert {tensor.dtype for tensor in weights(job.output_dir).values()} == {torch.bfloat16}
    assert json.loads((job.output_dir / "config.json").read_text())["dtype"] == "bfloat16"
    last = Path(events.of("checkpoint")[-1]["path"])
    assert {tensor.dtype for tensor in weights(last).values()} == {torch.float32}


CASES: dict[str, dict[str, Any]] = {
    "lora with dropout": {"language_model": {"lora": {"dropout": 0.3, "bias": "all"}}},
    "full": {"language_model": FULL},
    "accumulation and cosine": {
        "training": {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 3}
    },
    "logging between checkpoints": {"training": {"logging_steps": 2}},
    "over several epochs": {"training": {"per_device_train_batch_size": 8, "max_steps": -1, "num_train_epochs": 2.4}},
    "evaluation": {"training": {"eval_strategy": "STEPS", "eval_steps": 2}, "language_model": {"eval_ratio": 0.3}},
    "checkpointed activations": {"training": {"gradient_checkpointing": True}},
    "bf16": {"training": {"bf16": True}},
    "plain sgd": {"training": {"optim": "sgd"}},
}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_a_checkpoint_and_resumed_is_as_if_nothing_had_happened(jobs: JobFactory, case: str) -> None:
    content = dict(CASES[case])
    content["training"] = {**SAVING, "max_steps": 8, **content.get("training", {})}
    whole_job = jobs(**content)
    whole = run(whole_job)

    def die(event: dict[str, Any]) -> None:
        if event["type"] == "checkpoint":
            raise KeyboardInterrupt

    killed_job = jobs(**content)
    with pytest.raises(KeyboardInterrupt):
        run(killed_job, die)
    checkpoint = killed_job.checkpoints / "checkpoint-3"
    resumed_job = jobs(**content, resume_from=str(checkpoint))
    resumed = run(resumed_job)

    assert resumed.of("started")[0]["step"] == 3
    for name in ("loss", "grad_norm", "learning_rate", "eval_loss"):
        after = {step: value for step, value in whole.curve(name).items() if step > 3}
        assert resumed.curve(name) == after
    assert same_weights(whole_job.output_dir, resumed_job.output_dir)


def test_stop_saves_and_resuming_goes_on(jobs: JobFactory) -> None:
    stop = StopRequest()

    def ask(event: dict[str, Any]) -> None:
        stop.requested = stop.requested or (event["type"] == "metrics" and event["step"] == 4)

    job = jobs()
    events = run(job, ask, stop)
    assert events.kinds()[-1] == "stopped"
    assert events.of("stopped")[0]["step"] == 4
    assert [event["step"] for event in events.of("checkpoint")] == [4]
    assert events.of("progress")[-1]["step"] == 4, "of quick steps some are not told, but the last one is"
    assert not job.output_dir.exists()
    resumed_job = jobs(resume_from=events.of("checkpoint")[0]["path"])
    run(resumed_job)
    whole_job = jobs()
    run(whole_job)
    assert same_weights(resumed_job.output_dir, whole_job.output_dir)


def test_stop_before_the_first_step_saves_nothing(jobs: JobFactory) -> None:
    stop = StopRequest()
    stop.requested = True
    events = run(jobs(), None, stop)
    assert events.of("stopped") == [events.events[-1]]
    assert events.events[-1]["step"] == 0
    assert not events.of("checkpoint")


def test_a_stop_that_comes_after_the_last_step_is_too_late(jobs: JobFactory) -> None:
    stop = StopRequest()

    def ask(event: dict[str, Any]) -> None:
        stop.requested = stop.requested or (event["type"] == "metrics" and event["step"] == 6)

    assert run(jobs(), ask, stop).kinds()[-1] == "done"


def test_a_job_that_died_after_its_last_step_is_finished_not_trained_again(jobs: JobFactory) -> None:
    first = run(jobs(training=SAVING))
    events = run(jobs(training=SAVING, resume_from=first.of("checkpoint")[-1]["path"]))
    assert events.curve() == {}
    assert events.kinds()[-1] == "done"


def test_accumulation_and_larger_batches_are_the_same_step(jobs: JobFactory) -> None:
    lora = {"lora": {"dropout": 0.0}}
    big = run(jobs(training={"per_device_train_batch_size": 4}, language_model=lora)).curve()
    small = run(
        jobs(training={"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}, language_model=lora)
    ).curve()
    assert small == pytest.approx(big, rel=1e-4)


def test_epochs_are_counted_and_the_last_batch_is_what_is_left(jobs: JobFactory) -> None:
    events = run(jobs(training={"max_steps": -1, "num_train_epochs": 2.0, "save_strategy": "EPOCH"}))
    assert events.of("started")[0]["total_steps"] == 12  # 22 rows, 4 at a time
    assert [event["step"] for event in events.of("checkpoint")] == [6, 12]
    assert events.of("progress")[-1]["epoch"] == 2.0


def test_validation_file_and_early_stopping(jobs: JobFactory, dataset: Path) -> None:
    training = {
        "max_steps": 40,
        "learning_rate": 1e-9,
        "eval_strategy": "STEPS",
        "eval_steps": 2,
        "early_stopping_patience": 3,
        "early_stopping_threshold": 0.01,
        "save_strategy": "STEPS",
    }
    events = run(jobs(training=training, validation_file=str(dataset)))
    assert list(events.curve("eval_loss")) == [2, 4, 6, 8]
    assert events.of("done")[0]["step"] == 8
    assert events.of("progress")[-1]["step"] == 8
    assert [event["step"] for event in events.of("checkpoint")] == [8]
    assert "training ends here" in events.text()


@pytest.mark.parametrize("method", ["METHOD_LORA", "METHOD_FULL"])
def test_bf16_trains_on_a_cpu_and_fp16_falls_back(jobs: JobFactory, method: str) -> None:
    exact = run(jobs(language_model={"method": method})).curve()
    half = run(jobs(training={"bf16": True}, language_model={"method": method})).curve()
    assert half != exact
    assert half == pytest.approx(exact, rel=0.05)
    events = run(jobs(training={"fp16": True}, language_model={"method": method}))
    assert "fp16 needs a GPU; training in float32" in events.text()
    assert events.curve() == exact


def test_a_checkpoint_can_be_due_by_the_clock(jobs: JobFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer_service.recipes import bookkeeping

    job = jobs(training={"save_interval_minutes": 1})
    clock = iter(range(0, 100_000, 40))
    monkeypatch.setattr(bookkeeping.time, "monotonic", lambda: float(next(clock)))
    assert run(job).of("checkpoint")


def test_a_loss_that_is_no_number_ends_the_job_and_is_never_saved(jobs: JobFactory, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(jobs.model_dir, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    job = jobs(model_dir=str(broken), training={"save_strategy": "STEPS", "save_steps": 1, "logging_steps": 1000})
    events = Recorder()
    with pytest.raises(LossDiverged, match="no longer a number at step 1") as caught:
        run(job, events.events.append)
    assert not caught.value.retryable
    assert any("learning_rate" in advice for advice in caught.value.problems)
    assert not list(job.checkpoints.glob("checkpoint-*"))


def test_rows_beyond_the_sequence_length_are_cut_and_counted(jobs: JobFactory) -> None:
    events = run(jobs(training={"max_steps": 6}, language_model={"max_seq_length": 40}))
    assert "22 rows tokenised" in events.text()
    assert " 0 were longer" not in events.text()


def test_everything_masked_is_found_before_training(jobs: JobFactory) -> None:
    with pytest.raises(InvalidDataset, match=r"all 22 rows have their reply beyond max_seq_length \(8 tokens\)"):
        run(jobs(language_model={"max_seq_length": 8}))


def test_bad_lines_are_all_reported_before_training(jobs: JobFactory, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a", "output": "b"}\nnonsense\n{"instruction": "a"}\n')
    with pytest.raises(InvalidDataset) as caught:
        run(jobs(train_file=str(bad)))
    assert len(caught.value.problems) == 2


def test_a_template_that_refuses_some_conversations_is_found_before_training(jobs: JobFactory, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(jobs.model_dir, model)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    path = model / "chat_template.jinja"
    path.write_text(template + path.read_text())
    data = tmp_path / "data.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n{"system": "s", "instruction": "a", "output": "b"}\n')
    with pytest.raises(InvalidDataset, match=r"begin with a system message, first row 2: .*System role not supported"):
        run(jobs(model_dir=str(model), train_file=str(data)))
    with pytest.raises(InvalidDataset, match="begin with a system message"):
        run(jobs(model_dir=str(model), validation_file=str(data)))
    run(jobs(model_dir=str(model), train_file=str(data), language_model={"max_samples": 1}))


def test_a_model_without_template_gets_one_and_keeps_it(jobs: JobFactory, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(jobs.model_dir, model)
    (model / "chat_template.jinja").unlink()
    job = jobs(model_dir=str(model))
    events = run(job)
    assert "no chat template" in events.text()
    assert "### Response" in (job.output_dir / "chat_template.jinja").read_text()


def test_max_samples_takes_the_first_rows(jobs: JobFactory) -> None:
    events = run(jobs(training={"max_steps": -1, "num_train_epochs": 1.0}, language_model={"max_samples": 8}))
    assert events.of("started")[0]["total_steps"] == 2


def test_an_adapter_that_does_not_fit_is_refused_with_what_there_is(jobs: JobFactory) -> None:
    with pytest.raises(InvalidJob, match=r"no 'query'; it has .*q_proj") as caught:
        run(jobs(language_model={"lora": {"target_modules": ["query", "k_proj"], "r": 33}}))
    assert len(caught.value.problems) == 2


def test_named_modules_alone_get_an_adapter(jobs: JobFactory) -> None:
    job = jobs(language_model={"lora": {"target_modules": ["q_proj", "v_proj"]}})
    run(job)
    assert {name.split(".")[-3] for name in weights(job.output_dir)} == {"q_proj", "v_proj"}


def test_a_sequence_longer_than_the_model_reads_is_refused(jobs: JobFactory) -> None:
    with pytest.raises(InvalidJob, match="the model can read 4096 tokens, not 5000"):
        run(jobs(language_model={"max_seq_length": 5000}))


def test_a_checkpoint_of_another_kind_is_refused(jobs: JobFactory, tmp_path: Path) -> None:
    lora = Path(run(jobs(training=SAVING)).of("checkpoint")[0]["path"])
    with pytest.raises((CheckpointUnusable, InvalidModel)):
        run(jobs(language_model=FULL, resume_from=str(lora)))
    with pytest.raises(CheckpointUnusable, match=r"language_model\.lora\.r was 8 there and is 4 now"):
        run(jobs(language_model={"lora": {"r": 4}}, resume_from=str(lora)))
    with pytest.raises(CheckpointUnusable, match=r"trainer_state\.json|cannot be used"):
        run(jobs(resume_from=str(tmp_path)))


@pytest.mark.parametrize("name", ["rng_state.pt", "optimizer.pt", "scheduler.pt", "scaler.pt"])
def test_pickles_in_a_checkpoint_are_refused_unread(jobs: JobFactory, tmp_path: Path, name: str) -> None:
    """Fault 40."""
    checkpoint = Path(run(jobs(training=SAVING)).of("checkpoint")[0]["path"])
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (checkpoint / name).write_bytes(b"cbuiltins\nexec\n(V" + trap.encode() + b"\ntR.")
    with pytest.raises(CheckpointUnusable, match=rf"{re.escape(name)} cannot be used"):
        run(jobs(resume_from=str(checkpoint)))
    assert not (tmp_path / "ran").exists()


def test_an_output_that_exists_is_never_overwritten(jobs: JobFactory) -> None:
    job = jobs()
    job.output_dir.mkdir()
    (job.output_dir / "precious").touch()
    with pytest.raises(OutputExists):
        run(job)
    assert names(job.output_dir) == {"precious"}
