"""What workers share is loaded by services that stay small."""

import subprocess
import sys

IMPORT_ALL = """
import importlib, pkgutil, sys, workerkit
for module in pkgutil.walk_packages(workerkit.__path__, "workerkit."):
    importlib.import_module(module.name)
print(sorted({"torch", "transformers", "peft", "safetensors"} & sys.modules.keys()))
"""


def test_no_machine_learning_library_is_loaded() -> None:
    found = subprocess.run([sys.executable, "-c", IMPORT_ALL], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"
