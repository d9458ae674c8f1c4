"""Datasets for language models: found, brought into one form, checked line by line, and read row by row."""

from modelkit.datasets.cache import DataCache
from modelkit.datasets.columns import CLASSIFICATION, PRETRAINING, SUPERVISED, ColumnNames
from modelkit.datasets.formats import LabelledText, Message, Reading, Row
from modelkit.datasets.index import key_of
from modelkit.datasets.jsonl import FileReport, JsonlDataset, scan
from modelkit.datasets.problems import DatasetProblem
from modelkit.datasets.source import DatasetFiles, DatasetReport, locate, preview, validate

__all__ = [
    "CLASSIFICATION",
    "PRETRAINING",
    "SUPERVISED",
    "ColumnNames",
    "DataCache",
    "DatasetFiles",
    "DatasetProblem",
    "DatasetReport",
    "FileReport",
    "JsonlDataset",
    "LabelledText",
    "Message",
    "Reading",
    "Row",
    "key_of",
    "locate",
    "preview",
    "scan",
    "validate",
]
