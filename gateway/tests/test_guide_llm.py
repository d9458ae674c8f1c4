"""/api/llm-finetuning: LoRA and QLoRA with the guide's values, forms, adapters (T13-T17, T19, T22, T31)."""

from typing import Any

import pytest

from gateway.tests.conftest import TASK_ID, Gateway
from servicekit.errors import InvalidArgument, Problem
from tunesmith.task.v1 import spec_pb2, task_pb2
from tunesmith.task.v1.task_service_pb2 import CreateTaskRequest

BASE = {"base_model": "llama-2-7b", "dataset_path": "/datasets/train.jsonl"}
# The guide's settings by size (T16, T17) and its QLoRA settings (T22), word for word.
SEVEN = {
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.05,
    "batch_size": 4,
    "gradient_accumulation_steps": 4,
    "learning_rate": 2e-4,
    "epochs": 3,
}
THIRTEEN = {
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "batch_size": 2,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1e-4,
    "epochs": 3,
}
QLORA = {
    "use_4bit": True,
    "bnb_4bit_compute_dtype": "float16",
    "bnb_4bit_quant_type": "nf4",
    "use_nested_quant": False,
}


async def start(gateway: Gateway, route: str, **fields: Any) -> spec_pb2.FinetuneSpec:
    response = await gateway.client.post(f"/api/llm-finetuning/{route}", json={**BASE, **fields})
    assert (response.status_code, response.json()) == (200, {"task_id": TASK_ID})
    request = gateway.tasks.requests[-1]
    assert isinstance(request, CreateTaskRequest)
    return request.spec.finetune


async def test_lora_has_the_guides_defaults(gateway: Gateway) -> None:
    spec = await start(gateway, "lora/start")
    model, training = spec.language_model, spec.training
    assert model.method == spec_pb2.METHOD_LORA
    assert (model.lora.r, model.lora.alpha, model.lora.dropout) == (8, 16, 0.05)
    assert list(model.lora.target_modules) == ["q_proj", "v_proj"]
    assert (training.num_train_epochs, training.per_device_train_batch_size, training.learning_rate) == (3, 4, 2e-4)
    assert (training.gradient_accumulation_steps, training.eval_steps, training.save_steps) == (4, 100, 100)
    assert model.max_seq_length == 512


async def test_qlora_has_defaults_of_its_own(gateway: Gateway) -> None:
    model = (await start(gateway, "qlora/start")).language_model
    assert model.method == spec_pb2.METHOD_QLORA
    assert (model.lora.r, model.lora.alpha, model.lora.dropout) == (64, 16, 0.1)
    assert model.quantization.type == "nf4"


@pytest.mark.parametrize("preset", [SEVEN, THIRTEEN])
async def test_the_settings_by_model_size(gateway: Gateway, preset: dict[str, Any]) -> None:
    spec = await start(gateway, "lora/start", **preset)
    lora, training = spec.language_model.lora, spec.training
    assert [lora.r, lora.alpha, lora.dropout] == [preset[name] for name in ("lora_r", "lora_alpha", "lora_dropout")]
    assert training.per_device_train_batch_size == preset["batch_size"]
    assert training.gradient_accumulation_steps == preset["gradient_accumulation_steps"]
    assert (training.learning_rate, training.num_train_epochs) == (preset["learning_rate"], 3)


@pytest.mark.parametrize("route", ["lora/start", "qlora/start"])
async def test_the_qlora_settings(gateway: Gateway, route: str) -> None:
    model = (await start(gateway, route, **QLORA)).language_model
    assert model.method == spec_pb2.METHOD_QLORA
    quantization = model.quantization
    assert (quantization.type, quantization.compute_dtype, quantization.double_quant) == ("nf4", "float16", False)


async def test_eight_bits_and_targets(gateway: Gateway) -> None:
    model = (
        await start(gateway, "lora/start", use_8bit=True, target_modules=["q_proj"], max_length=256)
    ).language_model
    assert (model.quantization.type, list(model.lora.target_modules), model.max_seq_length) == ("int8", ["q_proj"], 256)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lora_r", 257),
        ("lora_alpha", 513),
        ("lora_dropout", 0.6),
        ("epochs", 51),
        ("batch_size", 33),
        ("learning_rate", 1e-7),
        ("gradient_accumulation_steps", 65),
        ("max_length", 1),
        ("target_modules", 5),
        ("lora_rang", 4),
    ],
)
async def test_ranges_are_those_of_the_guide(gateway: Gateway, field: str, value: Any) -> None:
    response = await gateway.client.post("/api/llm-finetuning/lora/start", json={**BASE, field: value})
    assert response.status_code == 422
    assert [item["loc"] for item in response.json()["detail"]] == [["body", field]]


async def test_only_language_models_are_trained_here(gateway: Gateway) -> None:
    for word in ("llm", "LLM", "language_model", "Causal-LM", "text", ""):
        assert (await start(gateway, "lora/start", model_type=word)).HasField("language_model")
    wrong: list[Any] = ["image_classifier", "text_to_image", {}]
    for word in wrong:
        response = await gateway.client.post("/api/llm-finetuning/lora/start", json={**BASE, "model_type": word})
        assert [item["loc"] for item in response.json()["detail"]] == [["body", "model_type"]]


async def test_contradictions_are_named(gateway: Gateway) -> None:
    body = {**BASE, "use_4bit": True, "use_8bit": True, "epochs": 2, "num_train_epochs": 3}
    response = await gateway.client.post("/api/llm-finetuning/lora/start", json=body)
    assert response.status_code == 422
    assert {item["loc"][1] for item in response.json()["detail"]} == {"use_8bit", "num_train_epochs"}


@pytest.mark.parametrize(("route", "rank"), [("lora", 4), ("qlora", 64)])
async def test_a_form_with_its_data(gateway: Gateway, route: str, rank: int) -> None:
    """T13: the file comes with the request, in any order with the fields."""
    line = b'{"instruction": "Translate to French: Hello", "response": "Bonjour"}\n'
    fields = {"base_model": "mistral-7b", "target_modules": "q_proj,v_proj", "use_4bit": "true"}
    fields |= {"lora_r": "4"} if route == "lora" else {}
    boundary = "abc"
    parts = [
        f'--{boundary}\r\ncontent-disposition: form-data; name="dataset"; filename="../d.jsonl"\r\n\r\n'.encode(),
        line,
    ]
    for name, value in fields.items():
        parts.append(f'\r\n--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}'.encode())
    body = b"".join([*parts, f"\r\n--{boundary}--\r\n".encode()])
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    response = await gateway.client.post(f"/api/llm-finetuning/{route}", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert (response.json()["status"], response.json()["task_id"]) == ("pending", TASK_ID)
    assert gateway.datasets.contents == [line]
    request = gateway.tasks.requests[-1]
    assert isinstance(request, CreateTaskRequest)
    model = request.spec.finetune.language_model
    assert (request.spec.finetune.dataset.dataset_id, model.lora.r) == ("0" * 26, rank)
    assert (model.method, list(model.lora.target_modules)) == (spec_pb2.METHOD_QLORA, ["q_proj", "v_proj"])


async def test_fields_that_come_several_times_are_lists(gateway: Gateway) -> None:
    """As programs send lists in forms; of what is no list there may be one."""
    fields: dict[str, Any] = {"base_model": "phi-2", "target_modules": ["q_proj", "k_proj"], "lora_r": ["4", "4"]}
    files = {"dataset": ("train.jsonl", b"{}")}
    response = await gateway.client.post("/api/llm-finetuning/lora", data=fields, files=files)
    assert response.status_code == 200, response.text
    request = gateway.tasks.requests[-1]
    assert isinstance(request, CreateTaskRequest)
    lora = request.spec.finetune.language_model.lora
    assert (list(lora.target_modules), lora.r) == (["q_proj", "k_proj"], 4)
    fields |= {"epochs": ["1", "2"], "name": ["a", "b"]}
    response = await gateway.client.post("/api/llm-finetuning/lora", data=fields, files=files)
    assert response.status_code == 422
    assert [detail["loc"][1] for detail in response.json()["detail"]] == ["epochs", "name"]


async def test_each_of_several_fields_says_what_one_says(gateway: Gateway) -> None:
    fields = {"base_model": "phi-2", "target_modules": ["q_proj, k_proj", " v_proj ", '["o_proj"]', ""]}
    files = {"dataset": ("train.jsonl", b"{}")}
    response = await gateway.client.post("/api/llm-finetuning/lora", data=fields, files=files)
    assert response.status_code == 200, response.text
    request = gateway.tasks.requests[-1]
    assert isinstance(request, CreateTaskRequest)
    modules = request.spec.finetune.language_model.lora.target_modules
    assert list(modules) == ["q_proj", "k_proj", "v_proj", "o_proj"]


@pytest.mark.parametrize(
    ("route", "names", "refused"),
    [
        ("llm-finetuning/data/upload", ("file", "file"), "file"),
        ("llm-finetuning/data/upload", ("file", "file2"), "file2"),
        ("training/datasets/upload", ("file", "file2"), "file2"),
        ("llm-finetuning/lora", ("dataset", "eval_dataset"), "eval_dataset"),
        ("training/image-classifier", ("labels", "dataset"), "labels"),
    ],
)
async def test_of_several_files_none_is_passed_over(
    gateway: Gateway, route: str, names: tuple[str, str], refused: str
) -> None:
    files = [(name, (f"{place}.jsonl", b"{}")) for place, name in enumerate(names)]
    response = await gateway.client.post(f"/api/{route}", files=files, data={"base_model": "phi-2"})
    assert response.status_code == 422
    (detail,) = response.json()["detail"]
    assert detail["loc"] == ["body", refused]
    assert "one file was expected" in detail["msg"]
    assert not gateway.datasets.headers


async def test_where_a_browser_chose_no_file_there_is_none(gateway: Gateway) -> None:
    empty = b'--b\r\ncontent-disposition: form-data; name="%s"; filename=""\r\n\r\n\r\n'
    response = await upload(gateway, empty % b"other" + FILE + END)
    assert response.status_code == 200, response.text
    response = await upload(gateway, (empty % b"file").removesuffix(b"\r\n") + END)
    assert (response.status_code, response.json()["detail"][0]["msg"]) == (422, "must be given")


async def test_problems_of_the_data_are_about_the_file(gateway: Gateway) -> None:
    """The rows are known only with the file; before it comes, nothing is said of the dataset."""
    gateway.tasks.spec_problems = [Problem("finetune.dataset.path", "line 2: there is no response")]
    fields = {"base_model": "phi-2", "dataset_path": "/elsewhere", "train_file": "/elsewhere"}
    files = {"dataset": ("train.jsonl", b"{}")}
    response = await gateway.client.post("/api/llm-finetuning/lora", data=fields, files=files)
    assert response.status_code == 422
    (detail,) = response.json()["detail"]
    assert (detail["loc"], detail["msg"]) == (["body", "dataset"], "line 2: there is no response")
    assert len(gateway.datasets.headers) == 1


async def upload(gateway: Gateway, body: bytes, kind: str = "multipart/form-data; boundary=b") -> Any:
    headers = {"content-type": kind}
    return await gateway.client.post("/api/llm-finetuning/data/upload", content=body, headers=headers)


FILE = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{}'


FORM = "multipart/form-data; boundary=b"
END = b"\r\n--b--\r\n"
TEXT_PART = b'--b\r\ncontent-disposition: form-data; name="file"\r\n\r\nx'


@pytest.mark.parametrize(
    ("body", "kind", "says"),
    [
        (b"{}", "application/json", "must be multipart/form-data"),
        (FILE, "multipart/form-data", "boundary"),
        (FILE, f"multipart/form-data; boundary={'b' * 71}", "boundary"),
        (FILE, FORM, "cut off"),
        (b"nonsense", FORM, "cannot be read"),
        (FILE.replace(b"file", b"data", 1) + END, FORM, "in the field file"),
        (TEXT_PART.replace(b"file", b"data") + END, FORM, "must be given"),
        (FILE.replace(b"{}", b"") + END, FORM, "is empty"),
        (TEXT_PART + END, FORM, "not a text"),
        (TEXT_PART.replace(b"x", b"\xff") + END, FORM, "UTF-8"),
        (TEXT_PART.replace(b"x", b"x" * 70_000) + END, FORM, "takes up to"),
        (b"--b\r\ncontent-disposition: form-data\r\n\r\nx" + END, FORM, "has no name"),
        (b"\r\n".join([TEXT_PART] * 201) + END, FORM, "more than 200 parts"),
    ],
)
async def test_a_form_that_cannot_be_read_is_422(gateway: Gateway, body: bytes, kind: str, says: str) -> None:
    response = await upload(gateway, body, kind)
    assert response.status_code == 422
    (detail,) = response.json()["detail"]
    assert says in detail["msg"]
    assert detail["loc"][0] == "body"
    assert not gateway.datasets.headers


async def test_uploaded_data_is_named_for_dataset_path(gateway: Gateway) -> None:
    response = await upload(gateway, FILE + b"\r\n--b--\r\n")
    assert (response.status_code, response.json()) == (200, {"path": "0" * 26, "samples": 3})
    spec = await start(gateway, "lora/start", dataset_path=response.json()["path"])
    assert spec.dataset.dataset_id == "0" * 26


async def test_what_the_service_refuses_is_about_the_file(gateway: Gateway) -> None:
    problem = Problem("header.file_name", "a.exe has no ending that tells how to read it")
    gateway.datasets.error = InvalidArgument(problems=[problem], reason="DATASET_UNREADABLE")
    response = await upload(gateway, FILE + b"\r\n--b--\r\n")
    assert response.status_code == 422
    assert response.json()["detail"] == [{"loc": ["body", "file"], "msg": problem.message, "type": "value_error"}]


async def test_a_file_that_is_too_large_is_413(tmp_path: Any, start_gateway: Any) -> None:
    async with start_gateway(tmp_path, max_upload_bytes=1024) as gateway:
        response = await upload(gateway, FILE + b"x" * 2000 + b"\r\n--b--\r\n")
        assert (response.status_code, list(response.json())) == (413, ["detail"])
        assert not gateway.datasets.headers


async def test_models_and_adapters(gateway: Gateway) -> None:
    (model,) = (await gateway.client.get("/api/llm-finetuning/models")).json()
    assert (model["id"], model["parameters"], model["description"]) == ("llama-2-7b", "7B", "language_model")
    task = gateway.tasks.add(state=task_pb2.STATE_COMPLETED, output_dir="/outputs/one", name="mine")
    language = task.spec.finetune.language_model
    language.method = spec_pb2.METHOD_LORA
    language.lora.MergeFrom(
        spec_pb2.LoraParameters(r=8, alpha=16, dropout=0.05, target_modules=["q_proj"], bias="none")
    )
    (adapter,) = (await gateway.client.get("/api/llm-finetuning/adapters")).json()["adapters"]
    assert (adapter["path"], adapter["name"]) == ("/outputs/one", "mine")
    assert (adapter["config"]["r"], adapter["config"]["target_modules"]) == (8, ["q_proj"])
    language.merge_after_training = True
    assert len((await gateway.client.get("/api/llm-finetuning/adapters")).json()["adapters"]) == 1
    language.method = spec_pb2.METHOD_FULL
    assert (await gateway.client.get("/api/llm-finetuning/adapters")).json() == {"adapters": []}


async def test_only_language_models_belong_here(gateway: Gateway) -> None:
    task = gateway.tasks.add()
    task.spec.finetune.image_classifier.SetInParent()
    assert (await gateway.client.get(f"/api/llm-finetuning/status/{TASK_ID}")).status_code == 404
    assert (await gateway.client.get(f"/api/training/status/{TASK_ID}")).status_code == 200
    task.spec.finetune.language_model.SetInParent()
    assert len((await gateway.client.get("/api/llm-finetuning/tasks")).json()) == 1
    assert (await gateway.client.post(f"/api/llm-finetuning/stop/{TASK_ID}")).json()["status"] == "running"
