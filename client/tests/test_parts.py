"""The parts that do no I/O: event parsing, addresses of calls, requests from plain values, discovery."""

from pathlib import Path

import pytest

from tunesmith.client import InvalidArgument, discover, finetune_request, generation_request, parameter_names
from tunesmith.client.errors import from_response
from tunesmith.client.finetune import dataset_source
from tunesmith.client.sse import EventParser, ServerEvent
from tunesmith.client.transcoding import transcode
from tunesmith.task.v1 import spec_pb2, task_pb2, task_service_pb2
from tunesmith.task.v1.task_service_pb2 import GetTaskRequest, ListTasksRequest

STREAM = (
    b": comment\n\nid: 1\ndata: a\ndata: b\n\nevent: end\r\nid: 2\r\ndata:c\r\n\r\n"
    b"retry: 1500\rdata: \xe2\x82\xac\r\r\nid: 9\n"
)
EVENTS = [ServerEvent("message", "a\nb", "1"), ServerEvent("end", "c", "2"), ServerEvent("message", "€", "2")]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(STREAM)])
def test_events_in_chunks_of_any_size(size: int) -> None:
    parser = EventParser()
    events = [event for start in range(0, len(STREAM), size) for event in parser.feed(STREAM[start : start + size])]
    assert events == EVENTS
    assert parser.retry_seconds == 1.5


def test_line_separators_inside_data_are_data() -> None:
    assert EventParser().feed("data: a\u2028b\x0bc\n\n".encode()) == [ServerEvent("message", "a\u2028b\x0bc", "")]


def test_calls_follow_the_annotations() -> None:
    methods = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"].methods_by_name
    request = ListTasksRequest(
        page_size=2, states=[task_pb2.STATE_RUNNING, task_pb2.STATE_FAILED], labels={"a": "1"}, with_total=True
    )
    call = transcode(methods["ListTasks"], request)
    assert (call.verb, call.path, call.body) == ("GET", "/v1/tasks", None)
    assert sorted(call.query) == [
        ("labels.a", "1"),
        ("page_size", "2"),
        ("states", "STATE_FAILED"),
        ("states", "STATE_RUNNING"),
        ("with_total", "true"),
    ]
    call = transcode(methods["StopTask"], task_service_pb2.StopTaskRequest(task_id="a/b", discard=True))
    assert (call.verb, call.path, call.body) == ("POST", "/v1/tasks/a%2Fb:stop", b'{"discard": true}')
    with pytest.raises(ValueError, match="task_id must not be empty"):
        transcode(methods["GetTask"], GetTaskRequest())
    with pytest.raises(ValueError, match="no HTTP form"):
        transcode(methods["ClaimTask"], task_service_pb2.ClaimTaskRequest())


def test_parameters_are_typed(tmp_path: Path) -> None:
    settings = {
        "learning_rate": "2e-4",
        "num_train_epochs": 3,
        "max_steps": "-1",
        "bf16": "yes",
        "fp16": False,
        "save_strategy": "epoch",
        "method": "LORA",
        "lora_r": "16",
        "lora_target_modules": "q_proj, v_proj",
        "max_seq_length": 512.0,
        "quantization_type": "nf4",
        "processes": "2",
    }
    (tmp_path / "m").mkdir()
    request = finetune_request("n", str(tmp_path / "m"), "s3://bucket/d.jsonl", settings, output_dir="out")
    spec = request.spec.finetune
    assert spec.base_model == str(tmp_path / "m")
    assert spec.dataset.uri == "s3://bucket/d.jsonl"
    assert spec.output_dir == str(Path("out").absolute())
    training, language_model = spec.training, spec.language_model
    assert (training.learning_rate, training.num_train_epochs, training.max_steps) == (2e-4, 3.0, -1)
    assert training.bf16 and training.HasField("fp16") and not training.fp16
    assert not training.HasField("seed")
    assert training.save_strategy == spec_pb2.INTERVAL_STRATEGY_EPOCH
    assert language_model.method == spec_pb2.METHOD_LORA
    assert (language_model.lora.r, list(language_model.lora.target_modules)) == (16, ["q_proj", "v_proj"])
    assert (language_model.max_seq_length, language_model.quantization.type) == (512, "nf4")
    assert spec.devices.processes == 2


@pytest.mark.parametrize(
    "value",
    [
        "q_proj,v_proj",
        '["q_proj", "v_proj"]',
        ' [ "q_proj" , "v_proj" ] ',
        "[q_proj,v_proj]",  # of which a shell took the quotes
        ["q_proj", "v_proj"],
        ("q_proj", "v_proj"),
    ],
)
def test_lists_are_separated_by_commas_or_written_in_json(value: str | list[str] | tuple[str, ...]) -> None:
    request = finetune_request("n", "m", "d", {"lora_target_modules": value})
    assert list(request.spec.finetune.language_model.lora.target_modules) == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("value", "texts"),
    [('["a, b", "[END]"]', ["a, b", "[END]"]), ("[END]", ["[END]"]), ("[END],[/END]", ["[END]", "[/END]"])],
)
def test_brackets_may_be_of_the_texts_themselves(value: str, texts: list[str]) -> None:
    assert list(generation_request("t", "hi", {"stop": value}).stop) == texts


def test_a_json_list_holds_texts() -> None:
    with pytest.raises(InvalidArgument, match="list of texts"):
        finetune_request("n", "m", "d", {"lora_target_modules": '["q_proj", 3]'})


def test_every_mistake_is_listed() -> None:
    settings = {
        "learnin_rate": 1,
        "xyz": 1,
        "max_steps": "ten",
        "seed": "-1",
        "save_steps": "1.5",
        "bf16": "maybe",
        "method": "magic",
        "weight_decay": "nan",
        "lora_target_modules": 3,
    }
    with pytest.raises(InvalidArgument) as caught:
        finetune_request("n", "m", "d", settings)
    problems = {problem.field: problem.message for problem in caught.value.problems}
    assert list(problems) == list(settings)
    assert "did you mean learning_rate" in problems["learnin_rate"]
    assert "lora_r" in problems["xyz"]
    assert "full, lora, qlora" in problems["method"]
    assert "finite" in problems["weight_decay"]


def test_every_scalar_of_the_protos_is_a_parameter() -> None:
    fields = {field.name for field in spec_pb2.TrainingParameters.DESCRIPTOR.fields}
    assert fields < set(parameter_names())


def test_datasets_as_people_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").touch()
    assert dataset_source("train.jsonl").path == str(tmp_path / "train.jsonl")
    assert dataset_source("not/here").path == "not/here"
    assert dataset_source("01j9zs6k7a8b9c0d1e2f3g4h5j").dataset_id == "01j9zs6k7a8b9c0d1e2f3g4h5j"
    assert dataset_source("s3://bucket/key").uri == "s3://bucket/key"
    for address in ("hf://tatsu-lab/alpaca", "hf://datasets/tatsu-lab/alpaca"):
        assert dataset_source(address).hub_id == "tatsu-lab/alpaca"


def data_dir(path: Path, url: str) -> Path:
    (path / "run").mkdir(parents=True)
    (path / "run" / "url").write_text(url + "\n")
    (path / "admin.token").write_text("local\n")
    return path


def test_what_is_given_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data_dir(tmp_path / "d", "http://127.0.0.1:9000")
    monkeypatch.setenv("TUNESMITH_URL", "http://elsewhere/")
    monkeypatch.setenv("TUNESMITH_TOKEN", "environment")
    assert (discover().url, discover().token) == ("http://elsewhere", "environment")
    assert (discover(data_dir=folder).url, discover(data_dir=folder).token) == ("http://127.0.0.1:9000", "local")
    assert discover("http://given", "token", folder).token == "token"


def test_local_token_stays_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data_dir(tmp_path / "d", "http://127.0.0.1:9000")
    monkeypatch.setenv("TUNESMITH_DATA_DIR", str(folder))
    assert discover().token == "local"
    assert discover("http://127.0.0.1:9000/").token == "local"
    assert discover("http://elsewhere").token == ""


@pytest.mark.parametrize(
    ("status", "content", "kind"),
    [(502, b"<html>Bad Gateway</html>", "UNAVAILABLE"), (404, b"", "NOT_FOUND"), (500, b"[]", "INTERNAL")],
)
def test_answers_of_others_become_errors_too(status: int, content: bytes, kind: str) -> None:
    error = from_response(status, content)
    assert (type(error).status, error.http_status) == (kind, status)
    assert f"HTTP {status}" in str(error)
