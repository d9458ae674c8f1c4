"""The files of an adapter in a ZIP, checked by reading it back."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

from export_service.results import CheckResult
from export_service.sources import is_adapter_file
from modelkit.adapters import Adapter
from modelkit.checkpoints import sha256_of

PIECE_BYTES = 1 << 20
CHECK = "files"


def write_archive(adapter: Path, target: Path, progress: Callable[[float, str], None]) -> CheckResult:
    """Writes the ZIP under another name first. Raises InvalidAdapter or OSError."""
    with Adapter(adapter):
        pass  # it is whole and of a kind that is known
    names = sorted(
        name for path in adapter.rglob("*") if path.is_file() and is_adapter_file(name := _name(path, adapter))
    )
    staging = target.with_name(f".{target.name}.tmp")
    with zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
        for number, name in enumerate(names):
            progress(number / len(names), "packing")
            archive.write(adapter / name, name)
    different = [name for name in names if _stored_sha256(staging, name) != sha256_of(adapter / name)]
    staging.replace(target)
    text = f"{target.name}: {len(names)} files, {len(different)} differ from what was trained"
    return CheckResult(target.name, CHECK, float(len(different)), 0.0, not different, text)


def _stored_sha256(archive: Path, name: str) -> str:
    digest = hashlib.sha256()
    with zipfile.ZipFile(archive) as opened, opened.open(name) as entry:
        while piece := entry.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
