"""Our side of preparation.py: every line checked, tokenised with masks, and stored. Prints the seconds that it took."""

import sys
import time
from pathlib import Path
from typing import Any

from modelkit import datasets
from modelkit.datasets import DataCache, DatasetFiles, JsonlDataset
from modelkit.encoders import encoder_for
from modelkit.loading import load_config, load_tokenizer
from trainer_service.recipes.rows import EncodedRows, Store
from workerkit.child import environment


def main(model: str, dataset: str, output: str) -> None:
    environment.apply()
    folder, cache = Path(model), DataCache(Path(output) / "cache")
    config = load_config(folder)
    tokenizer: Any = load_tokenizer(folder, config)
    print("begin", flush=True)
    started = time.perf_counter()
    report = datasets.validate(DatasetFiles(Path(dataset)), cache)
    encoder = encoder_for(report.train, tokenizer, config, max_length=512)
    rows = EncodedRows(JsonlDataset(report.train), encoder, Store(cache, "tokens", report.train))
    rows.fill()
    elapsed = time.perf_counter() - started
    print(f"seconds {elapsed} rows {len(rows)}", flush=True)
    first = rows.get([0])[0]
    print(f"first {first.input_ids.tolist()} {first.labels.tolist()}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
