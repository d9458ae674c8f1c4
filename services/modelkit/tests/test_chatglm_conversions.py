"""Conversions of ChatGLM models: made once, whole, apart from who asks, and kept within a limit (F1, F10)."""

import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelkit.base_models import BaseModels
from modelkit.chatglm import conversion, pieces
from modelkit.datasets import DataCache
from modelkit.errors import InvalidModel
from modelkit.paths import AllowedRoots
from services.modelkit.tests.chatglm_checkpoints import checkpoint, configuration, models, sentencepiece_model

__all__ = ["models", "sentencepiece_model"]


def test_a_conversion_is_done_once_and_again_when_files_change(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    weights = checkpoint(source, sentencepiece_model, configuration())
    abandoned = tmp_path / "converted" / ".incoming" / "of-somebody-killed"
    abandoned.mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    first = models.ready(models.resolve("chatglm3-6b"))
    assert not abandoned.exists()
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert models.ready(models.resolve("chatglm3-6b")) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    save_file({name: tensor + 1 for name, tensor in weights.items()}, source / "model.safetensors")
    second = models.ready(models.resolve("chatglm3-6b"))
    assert second != first
    name = "lm_head.weight"
    assert torch.equal(load_file(second / "model.safetensors")[name], load_file(first / "model.safetensors")[name] + 1)
    assert list((tmp_path / "converted" / ".incoming").iterdir()) == []


def test_a_conversion_is_on_disk_before_it_has_its_name(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its name for ever; a crash of the machine must not leave empty files under it."""
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    synced, fsync = set(), os.fsync

    def note(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    target = models.ready(models.resolve("chatglm3-6b"))
    staged = {path.name for path in synced if ".incoming" in str(path)}
    assert {path.name for path in target.iterdir()} <= staged


@pytest.mark.parametrize("name", ["transformer.prefix_encoder.embedding.weight", "lm_head.weight"])
def test_an_unknown_tensor_ends_the_conversion(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, name: str
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    weights = checkpoint(source, sentencepiece_model, configuration())
    save_file({**weights, name: torch.ones(2, 2)}, source / "model.safetensors")
    found = models.resolve("chatglm3-6b")
    with pytest.raises(InvalidModel, match="no tensor of a ChatGLM model"):
        models.ready(found)
    assert list((tmp_path / "converted").glob("[!.]*")) == list((tmp_path / "converted" / ".incoming").iterdir()) == []


def test_several_that_ask_at_once_share_one_conversion(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    found, convert = models.resolve("chatglm3-6b"), conversion._convert_apart
    made: list[Path] = []

    def counted(source: Path, target: Path) -> None:
        made.append(target)
        convert(source, target)

    monkeypatch.setattr(conversion, "_convert_apart", counted)
    with ThreadPoolExecutor(3) as threads:
        folders = list(threads.map(lambda _: models.ready(found), range(3)))
    assert len(set(folders)) == len(made) == 1


def test_conversions_are_kept_within_a_limit_but_never_taken_from_who_uses_them(
    tmp_path: Path, sentencepiece_model: Path
) -> None:
    for name in ("a", "b", "c"):
        checkpoint(
            tmp_path / "root" / f"chatglm3-{name}", sentencepiece_model, configuration(seq_length=128 + ord(name))
        )
    conversions = DataCache(tmp_path / "converted", limit_bytes=1)
    models = BaseModels(AllowedRoots([tmp_path / "root"]), hub_cache=tmp_path / "hub", conversions=conversions)
    first, second = (models.ready(models.resolve(f"chatglm3-{name}")) for name in ("a", "b"))
    for folder in (first, second):
        os.utime(folder, (0, 0))
    with conversions.holding(first / "config.json", tmp_path / "elsewhere"):
        third = models.ready(models.resolve("chatglm3-c"))
        assert (first.is_dir(), second.is_dir(), third.is_dir()) == (True, False, True)
    conversions.trim()
    assert not first.is_dir()
    with pytest.raises(FileNotFoundError), conversions.holding(first):
        pass
    assert models.ready(models.resolve("chatglm3-a")) == first


PIECE = struct.pack("<BBBB", 0x0A, 2, 0x0A, 0)


@pytest.mark.parametrize(("content", "words"), [
    (b"\x0a\x00" * (pieces.MAX_PIECES + 1), "more than 1048576 pieces"),
    (b"\x0a\xff\xff\xff\xff\x0f", "piece 1 has more than 1024 bytes"),
    (b"\x0a" + b"\xff" * 12, "cut off"),
    (PIECE + b"\x12\x80\x80\x80\x80\x08", "cut off"),
    (PIECE + b"\x0b", "not a sentencepiece model"),
    (b"AA== 0\n" * (pieces.MAX_PIECES + 1), "more than 1048576 lines"),
    (b"A" * 2000 + b" 0\n", "line 1 has more than 1024 bytes"),
], ids=range(7))  # fmt: skip
def test_a_tokenizer_that_states_anything_is_refused_before_a_library_reads_it(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path, content: bytes, words: str
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    checkpoint(source, sentencepiece_model, configuration())
    (source / "tokenizer.model").write_bytes(content)
    with pytest.raises(InvalidModel, match=words):
        models.resolve("chatglm3-6b")


def test_a_tokenizer_of_any_size_is_not_taken_into_memory(
    tmp_path: Path, models: BaseModels, sentencepiece_model: Path
) -> None:
    source = tmp_path / "root" / "chatglm3-6b"
    checkpoint(source, sentencepiece_model, configuration())
    os.truncate(source / "tokenizer.model", 8 << 30)
    with pytest.raises(InvalidModel, match="more than 64 MiB"):
        models.resolve("chatglm3-6b")


def test_who_asks_for_a_conversion_loads_no_library(tmp_path: Path, sentencepiece_model: Path) -> None:
    """The service stays small, and what a library does with a stranger's file does not happen in it."""
    checkpoint(tmp_path / "root" / "chatglm3-6b", sentencepiece_model, configuration())
    code = """
import sys
from pathlib import Path
from modelkit.base_models import BaseModels
from modelkit.datasets import DataCache
from modelkit.paths import AllowedRoots
root = Path(sys.argv[1])
models = BaseModels(AllowedRoots([root / "root"]), conversions=DataCache(root / "converted"))
assert models.ready(models.resolve("chatglm3-6b")).parent == root / "converted"
assert not {"torch", "sentencepiece", "tokenizers", "safetensors"} & set(sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
