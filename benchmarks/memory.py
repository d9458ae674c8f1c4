"""Resident memory of each process of an idle platform.

python -m benchmarks.memory
"""

import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.report import print_table, verdict
from tests.support.platform import Platform

SETTLE_SECONDS = 5
MEGABYTE = 1e6
LIMITS = {"task-service": 150.0, "gateway": 150.0}


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as directory, Platform(Path(directory) / "data") as platform:
        time.sleep(SETTLE_SECONDS)
        for name, pid in platform.process_ids().items():
            process = psutil.Process(pid)
            own = process.memory_info().rss / MEGABYTE
            children = sum(child.memory_info().rss for child in process.children(recursive=True)) / MEGABYTE
            limit = LIMITS.get(name)
            rows.append([name, f"{own:.0f}", f"{children:.0f}", verdict(own, limit, at_most=True) if limit else ""])
    print_table("Resident memory, idle (MB)", ["process", "itself", "its children", "figure"], rows)


if __name__ == "__main__":
    main()
