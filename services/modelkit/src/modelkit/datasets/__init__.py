"""Datasets for language models: found, checked line by line, and read as conversations."""

from modelkit.datasets.formats import Message
from modelkit.datasets.jsonl import FileReport, JsonlDataset, scan
from modelkit.datasets.problems import DatasetProblem
from modelkit.datasets.source import DatasetFiles, DatasetReport, locate, preview, validate

__all__ = [
    "DatasetFiles",
    "DatasetProblem",
    "DatasetReport",
    "FileReport",
    "JsonlDataset",
    "Message",
    "locate",
    "preview",
    "scan",
    "validate",
]
