"""What only a tokenizer can say of data: reports, and trainings that could learn nothing, found at submit."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from modelkit import scratch
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache, DatasetFiles
from modelkit.paths import AllowedRoots
from servicekit.errors import InvalidArgument, Unavailable
from trainer_service.checks import SpecChecks
from trainer_service.data_questions import DataQuestions
from trainer_service.dataset_answers import reported
from trainer_service.setup import PRELOAD
from tunesmith.task.v1 import spec_pb2
from tunesmith.trainer.v1 import trainer_service_pb2 as trainer
from workerkit.datasets import DatasetChecks, reading_of
from workerkit.fork_launcher import ForkLauncher, running_launcher
from workerkit.launcher import LaunchError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("data_questions")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = Path(json.__file__).read_text()
    folder = tmp_path_factory.mktemp("models") / "data" / "model"
    folder.parent.mkdir()
    return scratch.build(folder, family="qwen2", hidden_size=32, layers=1, vocab_size=320, corpus=[text]).directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher() -> AsyncIterator[ForkLauncher]:
    async with running_launcher(preload=PRELOAD, entry="trainer_service.data_answers:run") as launcher:
        yield launcher


class CountingLauncher(ForkLauncher):
    """Counts the children that are there at once; none of them answers."""

    def __init__(self) -> None:
        self.running = self.most = 0

    async def start(self, *_: Any, **__: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        raise LaunchError("no child")


async def test_only_a_few_children_look_at_data_at_once(tmp_path: Path) -> None:
    """Fault 56: a flood of questions waits."""
    (tmp_path / "train.jsonl").write_text("{}")
    launcher = CountingLauncher()
    questions, files = DataQuestions(launcher), DatasetFiles(tmp_path / "train.jsonl")
    request = trainer.ReportDatasetRequest()
    asked = [questions.report(request, files, None, tmp_path / "cache") for _ in range(20)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    assert 1 < launcher.most <= 6


class Desk:
    """Checks and questions about data beneath one root."""

    def __init__(self, folder: Path, model: Path, launcher: ForkLauncher) -> None:
        self.folder, self.model = folder, model
        self.cache = DataCache(folder / "cache")
        roots = AllowedRoots([folder, model.parent])
        self.checks = SpecChecks(roots, BaseModels(roots), DatasetChecks(self.cache))
        self.questions = DataQuestions(launcher)

    def source(self, *rows: Any, name: str = "train", **files: list[Any]) -> spec_pb2.DatasetSource:
        for split, content in {name: list(rows), **files}.items():
            lines = [row if isinstance(row, str) else json.dumps(row) for row in content]
            (self.folder / f"{split}.jsonl").write_text("\n".join(lines))
        return spec_pb2.DatasetSource(path=str(self.folder))

    async def report(self, source: spec_pb2.DatasetSource, **fields: Any) -> trainer.ReportDatasetResponse:
        request = trainer.ReportDatasetRequest(dataset=source, base_model=str(self.model), **fields)
        reading = reading_of(source, request.objective) if request.objective else None
        files = self.checks.dataset(source, reading=reading)
        return reported(await self.questions.report(request, files, self.model, self.cache.root))

    async def check(self, source: spec_pb2.DatasetSource, **parameters: Any) -> dict[str, str]:
        spec = spec_pb2.FinetuneSpec(
            base_model=str(self.model), dataset=source, language_model=spec_pb2.LanguageModelParameters(**parameters)
        )
        checked = self.checks.check(spec_pb2.TaskSpec(finetune=spec))
        found = [*checked.problems, *await self.questions.problems(spec, checked, self.cache.root)]
        return {problem.field: problem.message for problem in found}


@pytest.fixture
def desk(tmp_path: Path, model: Path, launcher: ForkLauncher) -> Desk:
    return Desk(tmp_path, model, launcher)


def row(number: int, words: int = 3) -> dict[str, str]:
    return {"instruction": f"Say {number}", "output": f"{number} and " * words + f"the end of {number * 7919}"}


async def test_a_report_says_what_the_data_is_like(desk: Desk) -> None:
    """T23, F26: repeats, overlap, lengths, what is learnt, advice."""
    rows = [row(number, words=2 + number % 5) for number in range(40)]
    prose = " ".join(f"{number * number} is the square of {number}," for number in range(20))
    pair = [{"instruction": "Tell me of squares", "output": prose + end} for end in (".", "!")]
    source = desk.source(*rows, rows[3], *pair, "not json", valid=[rows[5], row(99)])
    found = await desk.report(source, max_seq_length=40, preview_rows=2)
    assert not found.valid
    assert [(problem.reason, list(problem.first_lines)) for problem in found.problems] == [("NOT_JSON", [44])]
    assert dict(found.rows) == {"train": 43, "validation": 2}
    assert (found.exact_duplicates, found.near_duplicates, found.overlapping_rows) == (1, 1, 1)
    assert [(list(pair.lines), pair.exact) for pair in found.duplicates] == [([4, 41], True), ([42, 43], False)]
    lengths = found.lengths
    assert lengths.median <= lengths.p95 <= lengths.max
    assert sum(lengths.rows) == 43
    assert lengths.upper[-1] == lengths.max + 1
    assert 0 < lengths.truncated_share < 1
    assert len(found.samples) == 2
    pieces = [(piece.text, piece.trained) for piece in found.samples[0].pieces]
    assert any("Say 0" in text and not trained for text, trained in pieces)
    assert any("0 and 0 and" in text and trained for text, trained in pieces)
    assert len(found.sha256) == 64
    advice = " ".join(found.advice)
    for words in ("43 rows", "repeat others", "in the training split too", "would be cut"):
        assert words in advice


async def test_a_report_on_classes(desk: Desk) -> None:
    rows = [{"sentence": f"a {number}", "label": "rare" if number % 50 == 0 else "usual"} for number in range(100)]
    found = await desk.report(desk.source(*rows))
    assert (found.format, dict(found.labels)) == ("classification", {"rare": 2, "usual": 98})
    assert any("out of balance" in text and "eval_ratio" not in text for text in found.advice)
    assert any("eval_ratio" in text for text in found.advice)


async def test_nothing_left_to_learn_is_found_at_submit(desk: Desk) -> None:
    """Fault 50: everything masked."""
    long = {"instruction": "word " * 200, "output": "yes"}
    source = desk.source(long, long)
    problems = await desk.check(source, max_seq_length=64)
    assert (
        "all 2 rows have their reply beyond max_seq_length (64 tokens)"
        in problems["finetune.language_model.max_seq_length"]
    )
    assert await desk.check(source, max_seq_length=64, train_on_prompt=True) == {}
    assert await desk.check(desk.source(long, row(1)), max_seq_length=64) == {}


async def test_a_template_that_does_not_fit_is_found_at_submit(desk: Desk, tmp_path: Path, model: Path) -> None:
    for file in model.iterdir():
        target = tmp_path / "strict" / file.name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "strict" / "chat_template.jinja").write_text(template + "{{ messages[-1].content }}")
    desk.model = tmp_path / "strict"
    desk.folder = tmp_path / "data"
    desk.folder.mkdir()
    problems = await desk.check(desk.source({"system": "Be kind", **row(1)}))
    assert "no system" in problems["finetune.dataset"]


async def test_a_model_that_cannot_be_loaded_is_named(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "nothing"}')
    desk.model = tmp_path / "broken"
    with pytest.raises(InvalidArgument, match=r"config\.json"):
        await desk.report(desk.source(row(1)))


async def test_what_was_found_sound_is_not_looked_at_again(desk: Desk) -> None:
    asked: list[str] = []

    class Counting(DataQuestions):
        async def _ask(self, question: Any) -> dict[str, Any]:
            asked.append(question["question"])
            return await super()._ask(question)

    desk.questions = Counting(desk.questions._launcher)
    source = desk.source(row(1))
    assert await desk.check(source) == await desk.check(source) == {}
    assert len(asked) == 1
    await desk.check(desk.source(row(1), row(2)))
    await desk.check(desk.source(row(1), row(2)), max_seq_length=100)
    assert len(asked) == 3
