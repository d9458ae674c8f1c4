"""Datasets from wherever they lie, and checks of them, remembered for as long as their files do not change."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from modelkit import datasets
from modelkit.datasets import CLASSIFICATION, SUPERVISED, ColumnNames, DataCache, DatasetFiles, DatasetProblem, Reading
from modelkit.datasets.guessing import guess_objective
from modelkit.datasets.hub import find_snapshot, is_hub_id
from modelkit.datasets.index import stamp
from modelkit.errors import InvalidDataset, ModelkitError, PathNotAllowed, Problem
from modelkit.hub_cache import default_hub_cache
from modelkit.paths import AllowedRoots
from tunesmith.task.v1 import spec_pb2
from workerkit.remote_datasets import RemoteDatasets

REMEMBERED = 128
OBJECTIVES = {
    value: name.removeprefix("OBJECTIVE_")
    for name, value in spec_pb2.Objective.items()
    if value != spec_pb2.OBJECTIVE_UNSPECIFIED
}


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """What a pass over every line of a dataset found. rows counts the training rows that are good."""

    rows: int
    format: str
    problems: tuple[DatasetProblem, ...]


class DatasetChecks:
    """Finds and checks datasets; the check at submit and the one before training cost one pass. Safe to use from
    threads, which it blocks."""

    def __init__(
        self, cache: DataCache, remote: RemoteDatasets | None = None, *, hub_cache: Path | None = None
    ) -> None:
        self.cache = cache
        self._remote = remote
        self._hub_cache = hub_cache or default_hub_cache()
        self._known: OrderedDict[object, DatasetCheck] = OrderedDict()
        self._lock = threading.Lock()

    def find(
        self, source: spec_pb2.DatasetSource, roots: AllowedRoots, reading: Reading, *, where: str, token: str = ""
    ) -> DatasetFiles:
        """The files of a dataset, in JSON Lines, wherever it lies. where is the field of the source.

        token is that of the user on whose behalf an uploaded dataset is read. Raises ModelkitError, TunesmithError.
        """
        problems: list[Problem] = []
        validation: Path | None = None
        try:
            if source.validation_path:
                validation = roots.resolve(source.validation_path, field=f"{where}.validation_path")
        except ModelkitError as error:
            problems += error.problems
        kind = source.WhichOneof("source") or "path"
        try:
            path, allowed = self._resolve(source, kind, roots, f"{where}.{kind}", token)
        except ModelkitError as error:
            raise type(error)([*error.problems, *problems], reason=error.reason) from error
        if problems:
            raise ModelkitError(problems)
        named = [*allowed.roots, *(roots.roots if validation else ())]
        within = AllowedRoots(named, private=roots.private, own=allowed.own)
        return datasets.locate(
            path, self.cache, validation=validation, roots=within, reading=reading, field=f"{where}.{kind}"
        )

    def check(self, files: DatasetFiles) -> DatasetCheck:
        """Reads every line unless it is known what is in them. Raises OSError."""
        identity = (_stamps(files), files.reading)
        with self._lock:
            if (known := self._known.get(identity)) is not None:
                self._known.move_to_end(identity)
                return known
        check = self._read(files)
        if (_stamps(files), files.reading) == identity:
            with self._lock:
                self._known[identity] = check
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return check

    def _read(self, files: DatasetFiles) -> DatasetCheck:
        report = datasets.validate(files, self.cache)
        return DatasetCheck(report.rows, report.format, report.problems)

    def _resolve(
        self, source: spec_pb2.DatasetSource, kind: str, roots: AllowedRoots, field: str, token: str
    ) -> tuple[Path, AllowedRoots]:
        """Where a source lies on this machine, and the directories that its files may not lead out of."""
        if kind == "hub_id":
            return find_snapshot(self._hub_cache, source.hub_id, field=field), AllowedRoots([self._hub_cache])
        if kind == "path":
            return self._resolve_path(source.path, roots, field)
        if self._remote is None:
            raise InvalidDataset(Problem(field, "there is no object store here; give a path"))
        if kind == "dataset_id":
            fetched = self._remote.uploaded(source.dataset_id, field=field, token=token)
        else:
            fetched = self._remote.stored(source.uri, field=field)
        return fetched, AllowedRoots([], own=[self.cache.root])

    def _resolve_path(self, path: str, roots: AllowedRoots, field: str) -> tuple[Path, AllowedRoots]:
        """A path below the roots; a name such as tatsu-lab/alpaca that is no path may be one of the hub."""
        try:
            return roots.resolve(path, field=field), roots
        except PathNotAllowed as error:
            if error.reason != "PATH_NOT_FOUND" or not is_hub_id(path):
                raise
            try:
                snapshot = find_snapshot(self._hub_cache, path, field=field)
            except InvalidDataset:
                raise error from None
            return snapshot, AllowedRoots([self._hub_cache])


def reading_of(
    source: spec_pb2.DatasetSource, objective: "spec_pb2.Objective.ValueType" = spec_pb2.OBJECTIVE_UNSPECIFIED
) -> Reading:
    """How a source's rows are read."""
    return Reading(OBJECTIVES.get(objective, SUPERVISED), columns_of(source))


def first_reading_of(source: spec_pb2.DatasetSource) -> Reading:
    """How a source's rows are read before it is known what they can be used for."""
    columns = columns_of(source)
    return Reading(CLASSIFICATION if columns.label else SUPERVISED, columns)


def columns_of(source: spec_pb2.DatasetSource) -> ColumnNames:
    """The columns that a source names."""
    names = source.columns
    return ColumnNames(names.text, names.prompt, names.response, names.system, names.messages, names.label)


def as_what_it_is(files: DatasetFiles) -> DatasetFiles:
    """Files read as what their first row can be used for, when nobody says what is to be learnt."""
    objective = guess_objective(files.train, files.reading.columns)
    return replace(files, reading=replace(files.reading, objective=objective))


def _stamps(files: DatasetFiles) -> tuple[object, ...]:
    return tuple(stamp(path) for path in (files.train, files.validation, files.test) if path is not None)
