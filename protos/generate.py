"""Generates the Python code of the contracts into gen/, and lints them with buf.

python protos/generate.py            write gen/
python protos/generate.py --check    lint, and fail when gen/ is not what the contracts say
"""

import argparse
import filecmp
import json
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

ROOT = Path(__file__).parent
GENERATED = ROOT / "gen"
VALIDATE = "buf/validate/validate.proto"
COMMENTS = "tunesmith/comments.json"


def sources() -> list[str]:
    """Paths of the contracts, relative to this directory."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tunesmith").rglob("*.proto"))


def validate_descriptors() -> bytes:
    """The descriptors of protovalidate's rules, which its package carries but not as a .proto file."""
    descriptors = descriptor_pb2.FileDescriptorSet()
    for name in ("descriptor", "duration", "timestamp", "field_mask"):
        module = __import__(f"google.protobuf.{name}_pb2", fromlist=["DESCRIPTOR"])
        module.DESCRIPTOR.CopyToProto(descriptors.file.add())
    rules = validate_pb.desc().proto
    descriptors.file.append(descriptor_pb2.FileDescriptorProto.FromString(rules.to_binary()))
    return descriptors.SerializeToString()


def compile_protos(arguments: list[str], files: list[str], workdir: Path) -> None:
    """Runs protoc over files with the given output arguments."""
    rules = workdir / "validate.binpb"
    rules.write_bytes(validate_descriptors())
    site = sysconfig.get_path("purelib")
    wellknown = resources.files("grpc_tools") / "_proto"
    command = [
        "protoc",
        f"--descriptor_set_in={rules}",
        f"-I{ROOT}",
        f"-I{site}",
        f"-I{wellknown}",
        *arguments,
        *files,
    ]
    if protoc.main(command) != 0:
        raise SystemExit("protoc failed")


def element_name(parent: Any, path: Sequence[int]) -> str:
    """The dotted name of the element at a path of a file's source information, relative to parent."""
    if not path:
        return ""
    field = parent.DESCRIPTOR.fields_by_number[path[0]]
    child = getattr(parent, field.name)[path[1]]
    return f".{child.name}{element_name(child, path[2:])}"


def comments(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    """The full name of each commented element of a contract, with its comment."""
    for location in file.source_code_info.location:
        named = len(location.path) % 2 == 0 and location.path
        if named and location.leading_comments:
            text = " ".join(location.leading_comments.split())
            yield f"{file.package}{element_name(file, location.path)}", text


def write_comments(target: Path, workdir: Path) -> None:
    """Writes the contracts' comments by full name, which the generated modules do not carry."""
    image = workdir / "commented.binpb"
    compile_protos([f"--descriptor_set_out={image}", "--include_source_info"], sources(), workdir)
    files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file
    found = dict(pair for file in files for pair in comments(file))
    (target / COMMENTS).write_text(json.dumps(found, indent=0, sort_keys=True, ensure_ascii=False) + "\n")


def generate(target: Path) -> None:
    """Writes the Python modules, their type stubs and the contracts' comments below target."""
    scripts = Path(sysconfig.get_path("scripts"))
    with tempfile.TemporaryDirectory() as workdir:
        plugins = [
            f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        ]
        compile_protos(
            [*plugins, f"--python_out={target}", f"--mypy_out={target}"], [*sources(), VALIDATE], Path(workdir)
        )
        services = [source for source in sources() if source.endswith("_service.proto")]
        compile_protos([*plugins, f"--grpc_python_out={target}", f"--mypy_grpc_out={target}"], services, Path(workdir))
        write_comments(target, Path(workdir))


def lint() -> None:
    """Runs buf's STANDARD rules over the contracts."""
    with tempfile.TemporaryDirectory() as workdir:
        image = Path(workdir) / "image.binpb"
        compile_protos(
            [f"--descriptor_set_out={image}", "--include_imports", "--include_source_info"], sources(), Path(workdir)
        )
        buf = Path(sysconfig.get_path("scripts")) / "buf"
        subprocess.run([buf, "lint", image, "--config", ROOT / "buf.yaml"], check=True)


def differences(expected: Path, actual: Path) -> list[str]:
    """Paths that differ between two directories of generated code."""
    names = {
        str(path.relative_to(root))
        for root in (expected, actual)
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    _, mismatched, missing = filecmp.cmpfiles(expected, actual, sorted(names), shallow=False)
    return sorted(mismatched + missing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="lint and compare instead of writing")
    if parser.parse_args().check:
        lint()
        with tempfile.TemporaryDirectory() as fresh:
            generate(Path(fresh))
            stale = differences(Path(fresh), GENERATED)
        if stale:
            print("generated code is stale; run 'make gen':", *stale, sep="\n  ", file=sys.stderr)
        return 1 if stale else 0
    shutil.rmtree(GENERATED, ignore_errors=True)
    GENERATED.mkdir()
    generate(GENERATED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
