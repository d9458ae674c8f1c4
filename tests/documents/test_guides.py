"""What the documents of the documented systems say stands in the guides, in English and in Chinese, and still works.

T1, T21, T23-T26, T33, F26, F37-F41, M1 as advice; commands and routes that the guides print are there.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.core import TyperGroup
from typer.exceptions import TyperException

from gateway.setup import describe
from scripts import check_docs
from scripts.check_docs import ROOT, TRANSLATED
from tunesmith.cli import app

MEMORY, PARAMETERS, GUIDE = "docs/memory-and-presets.md", "docs/parameters.md", "docs/guide.md"
# By row: the page, and what it says in English and in Chinese.
ADVICE: dict[str, list[tuple[str, str, str]]] = {
    "T21": [
        (MEMORY, "below 16 GB of video memory", "显存有限（< 16GB）"),
        (MEMORY, "models of 13B and more on consumer GPUs", "在消费级硬件上训练 13B+ 模型"),
        (MEMORY, "small cloud machines", "内存受限的云实例"),
    ],
    "T23": [
        (MEMORY, "remove duplicates, errors and low-quality samples", "移除重复、错误和低质量样本"),
        (MEMORY, "balance classes; augment small datasets", "平衡类别；对小数据集使用数据增强"),
        (MEMORY, "keep 10-20 % for validation", "保留 10-20% 用于验证"),
    ],
    "T24": [
        (MEMORY, "start with a subset (max_samples)", "先在子集上训练以验证设置（max_samples）"),
        (MEMORY, "watch the validation loss", "监控验证损失"),
        (MEMORY, "use warm-up and cosine decay", "使用预热和余弦衰减"),
        (MEMORY, "save checkpoints regularly; a training resumes from them", "定期保存检查点以便恢复训练"),
    ],
    "T25": [
        (MEMORY, "accumulate gradients to simulate larger batches", "用梯度累积模拟更大的批次"),
        (MEMORY, "mixed precision is faster", "混合精度加速训练"),
        (MEMORY, "gradient checkpointing trades time for memory", "梯度检查点用计算换内存"),
    ],
    "T26": [
        (MEMORY, "on a test set that it has not seen", "在未见过的测试集上最终评估"),
        (MEMORY, "use several metrics", "使用多个指标"),
        (MEMORY, "look at outputs by hand", "人工检查输出"),
    ],
    "F26": [
        (MEMORY, "at least 1000 good samples, accurate and varied", "至少 1000 条准确、多样的样本"),
        (GUIDE, "remove duplicates", "去除重复"),
    ],
    "F37": [(GUIDE, "0.15\nand 0.05 make the usual 80/15/5", "0.15 和 0.05 即常用的 80/15/5")],
    "F38": [(PARAMETERS, "2e-4 for small models, 5e-5 for large ones", "小模型 2e-4，大模型 5e-5")],
    "F39": [
        (MEMORY, "LoRA needs few resources and keeps the quality", "LoRA 显著降低资源需求并保持良好效果"),
        (MEMORY, "several GPUs train faster and carry larger models", "多卡并行提高速度、支持更大模型"),
        (
            PARAMETERS,
            "One GPU for models up to 7B, several for 13B and larger",
            "7B 及以下模型用单卡，13B 及以上模型用多卡",
        ),
    ],
    "F40": [(MEMORY, "compare with the base model", "与基线模型对比")],
    "M1": [
        (MEMORY, "LoRA needs at least 4 GB of video memory", "LoRA 微调最低 4GB 显存"),
        (MEMORY, "checkpoints and logs need disk space", "检查点和日志需要足够的存储空间"),
    ],
}
# T33: what the training guide links to; F41: the pages on talking to models and on the machines that compute.
LINKS = {
    "T33": (
        MEMORY,
        [
            "https://huggingface.co/docs/peft",
            "https://arxiv.org/abs/2106.09685",
            "https://arxiv.org/abs/2305.14314",
            "https://docs.ultralytics.com",
        ],
    ),
    "F41": (GUIDE, ["http.md", "operations.md", "evaluation.md", "memory-and-presets.md"]),
}


def links(page: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())


@pytest.mark.parametrize("row", ADVICE)
def test_advice_stands_in_both_languages(row: str) -> None:
    for page, english, chinese in ADVICE[row]:
        assert english in (ROOT / page).read_text()
        assert chinese in (ROOT / TRANSLATED[page]).read_text()


@pytest.mark.parametrize("row", LINKS)
def test_links_stand_in_both_languages(row: str) -> None:
    page, wanted = LINKS[row]
    for language in (page, TRANSLATED[page]):
        assert set(wanted) <= {target.replace(".zh.md", ".md").partition("#")[0] for target in links(language)}


@pytest.mark.parametrize("page", TRANSLATED)
def test_t1_pages_are_there_in_both_languages_and_link_each_other(page: str) -> None:
    for one, other in ((page, TRANSLATED[page]), (TRANSLATED[page], page)):
        assert Path(other).name in links(one)


def test_t1_every_guide_of_the_readme_is_translated() -> None:
    named = {target for target in links("README.md") if re.fullmatch(r"docs/[\w-]+\.md", target)}
    assert named - set(TRANSLATED) == {"docs/architecture.md", "docs/operations.md"}, "those for who runs a platform"
    assert set(TRANSLATED) - named == {"README.md"}


def test_links_settings_and_translations_hold(capsys: pytest.CaptureFixture[str]) -> None:
    status = check_docs.main()
    assert status == 0, capsys.readouterr().err


def printed_commands() -> Iterator[tuple[str, list[str]]]:
    """Every line of a shell in a page that runs the command, in words."""
    for page in check_docs.documents():
        for block in re.findall(r"(?ms)^```bash\n(.*?)^```", page.read_text()):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith(".venv/bin/tunesmith "):
                    yield f"{page.name}: {line}", shlex.split(line, comments=True)[1:]


def read_words(command: Any, words: list[str]) -> None:
    """Reads words as the command does, without running it. Raises its own errors for those that it does not know."""
    context = command.make_context(command.name, list(words))
    if isinstance(command, TyperGroup):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        read_words(inner, rest)


def test_every_command_that_is_printed_is_understood() -> None:
    command = typer.main.get_command(app)
    with pytest.raises(TyperException, match="No such option"):
        read_words(command, ["tasks", "list", "--no-such-option"])
    printed = list(printed_commands())
    assert len(printed) > 60
    for line, words in printed:
        try:
            read_words(command, words)
        except TyperException as error:
            pytest.fail(f"{line}: {error}")


def printed_routes() -> Iterator[tuple[str, str, str]]:
    """Methods and whole paths that stand as code in a page."""
    for page in check_docs.documents():
        for method, path in re.findall(r"`(GET|POST|DELETE|PUT|PATCH) (/[^`\s?]+)", page.read_text()):
            yield page.name, method, path


def test_every_route_that_is_printed_is_served() -> None:
    served = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path))
        for path, methods in describe()["paths"].items()
        for method in methods
    }
    printed = {(page, method, re.sub(r"\{[^}]*\}", "{}", path)) for page, method, path in printed_routes()}
    assert len(printed) > 50
    assert {route for route in printed if route[1:] not in served | {("GET", "/healthz")}} == set()
