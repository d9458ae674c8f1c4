"""Evaluations, exports and answers through both clients, against a real HTTP server."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.client import (
    AsyncClient,
    Client,
    InvalidArgument,
    NotFound,
    Unavailable,
    evaluation_parameters,
    evaluation_request,
    export_request,
    generation_request,
)
from tunesmith.task.v1 import spec_pb2

CONTENT = bytes(range(256)) * 1000
NAME = "merged_model-Q8_0.gguf"
PATH = f"/v1/exports/e/artifacts/{NAME}"
WORDS = [
    {"loading": {"phase": "loading model", "percent": 50.0}},
    {"text": "Hel"},
    {"text": "lo"},
    {"finish_reason": "stop", "usage": {"prompt_tokens": "3", "completion_tokens": "2"}},
]


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(config=server.config) as client:
        yield client


@pytest.fixture
async def async_client(server: Any) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(config=server.config) as client:
        yield client


@pytest.fixture
def package(server: Any) -> Any:
    """The server with an export of one file."""
    artifact = {"name": NAME, "size": str(len(CONTENT)), "sha256": hashlib.sha256(CONTENT).hexdigest()}
    server.answers["GET /v1/exports/e"] = {"export": {"task_id": "e", "artifacts": [artifact]}}
    server.files[PATH] = CONTENT
    return server


def ranges(server: Any) -> list[str]:
    """What was asked for of the file, request by request."""
    return [headers.get("range", "") for _, path, headers, _ in server.requests if path == PATH]


def test_requests_for_evaluations() -> None:
    values = {"scores": "perplexity,token_f1", "temperature": "0", "split": "test", "sampling_seed": 7, "seed": 1}
    request = evaluation_request(
        "n", "t", [10, 20], values | {"weight_perplexity": "0.5"}, base_model=True, dataset="d"
    )
    spec = request.spec.evaluate
    assert (spec.source_task_id, list(spec.checkpoint_steps), spec.include_base_model) == ("t", [10, 20], True)
    assert (list(spec.scores), spec.split) == (["perplexity", "token_f1"], spec_pb2.EVALUATION_SPLIT_TEST)
    assert (spec.sampling.temperature, spec.sampling.seed, spec.seed) == (0.0, 7, 1)
    assert spec.sampling.HasField("temperature")
    assert (dict(spec.weights), spec.dataset.path) == ({"perplexity": 0.5}, "d")
    assert not evaluation_request("n", "t").spec.evaluate.HasField("sampling")
    with pytest.raises(InvalidArgument) as caught:
        evaluation_request("n", "t", (), {"temprature": 1, "max_samples": "x", "weight_f1": "much"})
    assert {problem.field for problem in caught.value.problems} == {"temprature", "max_samples", "weight_f1"}
    assert "did you mean temperature" in str(caught.value)
    assert {"max_samples", "sampling_seed", "stop"} <= set(evaluation_parameters())


def test_requests_for_exports(tmp_path: Path) -> None:
    request = export_request("n", "t", "gguf", ["Q4_K_M"], checkpoint_step=10, output_dir="out", modelfile=False)
    spec = request.spec.export
    assert (spec.format, list(spec.quantizations)) == (spec_pb2.EXPORT_FORMAT_GGUF, ["Q4_K_M"])
    assert (spec.checkpoint_step, spec.modelfile, spec.output_dir) == (10, False, str(Path("out").absolute()))
    assert not export_request("n", "t", "merged").spec.export.HasField("modelfile")
    with pytest.raises(InvalidArgument, match="gguf-adapter"):
        export_request("n", "t", "onnx")


def test_every_call(client: Client, server: Any) -> None:
    evaluation = {"task_id": "e", "recommended_step": "20", "state": "STATE_COMPLETED"}
    server.answers = {
        "GET /v1/evaluations/e": {"evaluation": evaluation},
        "GET /v1/evaluations": {"evaluations": [evaluation]},
        "GET /v1/scores": {"scores": [{"name": "perplexity"}]},
        "GET /v1/exports/x": {"export": {"task_id": "x"}},
        "GET /v1/exports": {"exports": [{"task_id": "x"}]},
        "GET /v1/export-formats": {"formats": [{"quantization": "Q8_0"}], "templates": [{"name": "lora_only"}]},
        "GET /v1/loaded-models": {"models": [{"task_id": "t"}]},
    }
    assert client.evaluations.get("e").recommended_step == 20
    assert [item.task_id for item in client.evaluations.list_page().evaluations] == ["e"]
    assert [score.name for score in client.evaluations.scores()] == ["perplexity"]
    assert client.exports.get("x").task_id == "x"
    assert [item.task_id for item in client.exports.list_page().exports] == ["x"]
    assert [item.quantization for item in client.exports.formats()] == ["Q8_0"]
    assert [item.name for item in client.exports.templates()] == ["lora_only"]
    assert [item.task_id for item in client.loaded_models()] == ["t"]


async def test_every_call_asynchronously(async_client: AsyncClient, server: Any, tmp_path: Path) -> None:
    server.answers = {
        "GET /v1/evaluations/e": {"evaluation": {"task_id": "e"}},
        "GET /v1/exports/x": {"export": {"task_id": "x"}},
    }
    server.files["/v1/evaluations/e/report/report.csv"] = b"step,total\n"
    assert (await async_client.evaluations.get("e")).task_id == "e"
    assert (await async_client.exports.get("x")).task_id == "x"
    path = await async_client.evaluations.download("e", "report.csv", tmp_path)
    assert path.read_bytes() == b"step,total\n"


def test_an_answer_comes_in_pieces(client: Client, server: Any) -> None:
    server.events, server.connections = WORDS, [(4, "end")]
    request = generation_request("t", "hi", {"temperature": 0, "stop": "a,b"}, checkpoint_step=5, system="be kind")
    responses = list(client.generate(request))
    assert responses[0].loading.phase == "loading model"
    assert "".join(response.text for response in responses) == "Hello"
    assert (responses[-1].finish_reason, responses[-1].usage.completion_tokens) == ("stop", 2)
    body = server.requests[0][3]
    assert body["messages"] == [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    assert (body["temperature"], body["stop"], body["checkpoint_step"]) == (0.0, ["a", "b"], "5")


async def test_an_answer_comes_in_pieces_asynchronously(async_client: AsyncClient, server: Any) -> None:
    server.events, server.connections = WORDS, [(4, "end")]
    texts = [response.text async for response in async_client.generate(generation_request("t", "hi"))]
    assert "".join(texts) == "Hello"


@pytest.mark.parametrize("then", ["break", "close"])
def test_a_broken_answer_does_not_begin_anew(client: Client, server: Any, then: str) -> None:
    server.events, server.connections = WORDS, [(2, then), (4, "end")]
    with pytest.raises(Unavailable):
        list(client.generate(generation_request("t", "hi")))
    assert len(server.requests) == 1


def test_a_file_is_fetched_and_verified(client: Client, package: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = client.exports.download("e", NAME, tmp_path, progress=lambda done, size: seen.append((done, size)))
    assert (path, path.read_bytes()) == (tmp_path / NAME, CONTENT)
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert not (tmp_path / f"{NAME}.part").exists()
    other = client.exports.download("e", "", tmp_path / "new" / "model.gguf")
    assert (other.name, other.read_bytes()) == ("model.gguf", CONTENT)


@pytest.mark.parametrize("cuts", [[1000], [1000, 0, 5000], [0]])
def test_a_download_goes_on_where_it_broke(client: Client, package: Any, tmp_path: Path, cuts: list[int]) -> None:
    package.cuts = list(cuts)
    assert client.exports.download("e", NAME, tmp_path).read_bytes() == CONTENT
    assert len(ranges(package)) == len(cuts) + 1
    done = sum(cuts)
    assert ranges(package)[-1] == (f"bytes={done}-" if done else "")


async def test_a_download_goes_on_asynchronously(async_client: AsyncClient, package: Any, tmp_path: Path) -> None:
    package.cuts = [1000]
    assert (await async_client.exports.download("e", NAME, tmp_path)).read_bytes() == CONTENT
    assert ranges(package) == ["", "bytes=1000-"]


def test_a_part_from_before_is_gone_on_with(client: Client, package: Any, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:777])
    assert client.exports.download("e", NAME, tmp_path).read_bytes() == CONTENT
    assert ranges(package) == ["bytes=777-"]
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert client.exports.download("e", NAME, tmp_path).read_bytes() == CONTENT
    assert len(ranges(package)) == 1, "everything was there"


@pytest.mark.parametrize("part", [b"x" * 777, b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_a_part_of_another_file_is_fetched_anew(client: Client, package: Any, tmp_path: Path, part: bytes) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(part)
    assert client.exports.download("e", NAME, tmp_path).read_bytes() == CONTENT


def test_what_is_not_what_was_stored_is_refused(client: Client, package: Any, tmp_path: Path) -> None:
    package.files[PATH] = CONTENT[::-1]
    with pytest.raises(Unavailable, match="another SHA-256"):
        client.exports.download("e", NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_a_folder(client: Client, package: Any, tmp_path: Path) -> None:
    package.answers["GET /v1/exports/e"]["export"]["artifacts"][0]["name"] = "templates/a b.jinja"
    package.files["/v1/exports/e/artifacts/templates/a b.jinja"] = CONTENT
    path = client.exports.download("e", "templates/a b.jinja", tmp_path)
    assert (path, path.read_bytes()) == (tmp_path / "templates" / "a b.jinja", CONTENT)


def test_names_of_files(client: Client, package: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=NAME):
        client.exports.download("e", "other", tmp_path)
    artifacts = package.answers["GET /v1/exports/e"]["export"]["artifacts"]
    for name in ("../escape", "/escape", "a/../../escape", "a//b"):
        artifacts[0]["name"] = name
        with pytest.raises(InvalidArgument, match="no name of a file"):
            client.exports.download("e", "", tmp_path)
    assert list(tmp_path.parent.glob("escape*")) == []
