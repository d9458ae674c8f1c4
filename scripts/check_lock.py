"""Checks that requirements.lock satisfies what every member and the development group ask for. Needs no network."""

import sys
import tomllib
from collections.abc import Collection, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
LOCK = ROOT / "requirements.lock"


def manifests() -> list[Path]:
    """The pyproject.toml files of the workspace: the root's first, then one for each member."""
    root = ROOT / "pyproject.toml"
    patterns = tomllib.loads(root.read_text())["tool"]["uv"]["workspace"]["members"]
    return [root, *sorted(path / "pyproject.toml" for pattern in patterns for path in ROOT.glob(pattern))]


def requirements(manifest: Path) -> Iterator[Requirement]:
    """Everything that a manifest asks for, its extras, dependency groups and build system included."""
    content = tomllib.loads(manifest.read_text())
    project = content["project"]
    groups = [
        project.get("dependencies", []),
        content.get("build-system", {}).get("requires", []),
        *project.get("optional-dependencies", {}).values(),
        *content.get("dependency-groups", {}).values(),
    ]
    for group in groups:
        yield from map(Requirement, group)


def locked() -> dict[str, list[Version]]:
    """Versions in the lock by name; several where they differ between platforms."""
    versions: dict[str, list[Version]] = {}
    for line in LOCK.read_text().splitlines():
        if "==" in line and not line.startswith((" ", "#")):
            requirement = Requirement(line.removesuffix("\\"))
            exact = next(iter(requirement.specifier)).version
            versions.setdefault(canonicalize_name(requirement.name), []).append(Version(exact))
    return versions


def problems(own: Collection[str], versions: dict[str, list[Version]]) -> Iterator[str]:
    """One line for each requirement that the lock does not satisfy."""
    for manifest in manifests():
        for requirement in requirements(manifest):
            name = canonicalize_name(requirement.name)
            if name in own:
                continue
            found = versions.get(name, [])
            if not any(requirement.specifier.contains(version, prereleases=True) for version in found):
                have = ", ".join(map(str, found)) or "nothing"
                yield f"{manifest.relative_to(ROOT)}: {requirement} is wanted, the lock has {have}"


def main() -> int:
    own = {canonicalize_name(tomllib.loads(path.read_text())["project"]["name"]) for path in manifests()}
    found = sorted(set(problems(own, locked())))
    if found:
        print("requirements.lock is stale; run 'make lock':", *found, sep="\n  ", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
