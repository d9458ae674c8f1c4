"""The tables of the task service.

Times are microseconds since 1970 on the database's clock, 0 while unset. Enumerations are the numbers of the protos.
Rows that refer to a task do so by its number.
"""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Double, ForeignKey, Index, Integer, LargeBinary, SmallInteger, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from servicekit.outbox import outbox_table
from task_service.database.types import Json, MetricValue, RowNumber

ID_LENGTH = 26
METRIC_NAME_LENGTH = 200


def _index(name: str, *columns: str, where: str) -> Index:
    """An index of the rows for which a condition holds."""
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Base(DeclarativeBase):
    """All tables of this service."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {str: Text, int: BigInteger, float: Double, bytes: LargeBinary}


def _task_key(**options: Any) -> Mapped[int]:
    return mapped_column(RowNumber, ForeignKey("tasks.number", ondelete="CASCADE"), **options)


class UserRow(Base):
    """A small integer for each owner, for surfaces whose user ids are integers."""

    __tablename__ = "users"
    __table_args__ = ({"sqlite_autoincrement": True},)

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(String(256), unique=True)


class TaskRow(Base):
    """What changes in a task's life, and what lists filter by. A task with a delete_time is invisible."""

    __tablename__ = "tasks"

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    owner: Mapped[str] = mapped_column(String(256))
    name: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(default="")
    kind: Mapped[int] = mapped_column(SmallInteger)
    base_model: Mapped[str] = mapped_column(default="")
    pool: Mapped[str] = mapped_column(String(32))
    request_id: Mapped[str | None] = mapped_column(String(128))
    request_hash: Mapped[str] = mapped_column(String(64))

    # The life cycle; the names are those of domain.Lifecycle.
    state: Mapped[int] = mapped_column(SmallInteger)
    run: Mapped[int] = mapped_column(Integer, default=1)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    dispatch_attempt: Mapped[int] = mapped_column(Integer, default=1)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    blocked: Mapped[bool] = mapped_column(default=False)
    stop_mode: Mapped[int] = mapped_column(SmallInteger, default=0)
    resume_step: Mapped[int] = mapped_column(default=0)
    checkpoint_high: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str] = mapped_column(default="")
    pid: Mapped[int] = mapped_column(default=0)
    heartbeat_time: Mapped[int] = mapped_column(default=0)
    dispatch_time: Mapped[int] = mapped_column(default=0)
    error_reason: Mapped[str] = mapped_column(default="")
    error_message: Mapped[str] = mapped_column(default="")
    error_problems: Mapped[list[str]] = mapped_column(Json, default=list)
    start_time: Mapped[int] = mapped_column(default=0)
    end_time: Mapped[int] = mapped_column(default=0)

    # How far it is and what came out.
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[float] = mapped_column(default=0.0)
    percent: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float] = mapped_column(default=0.0)
    phase: Mapped[str] = mapped_column(default="")
    metrics: Mapped[dict[str, float]] = mapped_column(Json, default=dict)
    metric_steps: Mapped[dict[str, list[int]]] = mapped_column(Json, default=dict)
    output_dir: Mapped[str] = mapped_column(default="")
    output_prefix: Mapped[str] = mapped_column(default="")
    manifest_sha256: Mapped[str] = mapped_column(default="")
    # Attempt after whose end the log was stored; only the archiver of logs writes it, a new attempt makes it due.
    log_attempt: Mapped[int] = mapped_column(Integer, default=0)

    create_time: Mapped[int] = mapped_column(default=0)
    update_time: Mapped[int] = mapped_column(default=0)
    delete_time: Mapped[int] = mapped_column(default=0)
    reap_time: Mapped[int] = mapped_column(default=0)

    __table_args__ = (
        Index("uq_tasks_request", "owner", "request_id", unique=True),
        # Each order of lists has an index for one owner and one for administrators. They hold every column that
        # common filters look at, so that tasks are passed over and counted without visiting their rows.
        Index("ix_tasks_owner", "owner", "delete_time", "number", "state", "kind", "name"),
        Index("ix_tasks_owner_update", "owner", "delete_time", "update_time", "number", "state", "kind"),
        Index("ix_tasks_owner_name", "owner", "delete_time", "name", "number", "state", "kind"),
        Index("ix_tasks_owner_start", "owner", "delete_time", "start_time", "number", "state", "kind"),
        Index("ix_tasks_number", "delete_time", "number", "state", "kind", "name"),
        Index("ix_tasks_update", "delete_time", "update_time", "number", "state", "kind"),
        Index("ix_tasks_name", "delete_time", "name", "number", "state", "kind"),
        Index("ix_tasks_start", "delete_time", "start_time", "number", "state", "kind"),
        Index("ix_tasks_state", "delete_time", "state", "number"),
        # What the archiver of logs still has to look at; few, whatever the number of tasks.
        _index("ix_tasks_log", "state", "number", where="log_attempt < attempt"),
        {"sqlite_autoincrement": True},
    )


class TaskSpecRow(Base):
    """What a task was asked to do; never changes, and kept apart so that rows of tasks stay short."""

    __tablename__ = "task_specs"

    task_number: Mapped[int] = _task_key(primary_key=True, autoincrement=False)
    spec: Mapped[bytes] = mapped_column(LargeBinary)
    parameter_sources: Mapped[dict[str, int]] = mapped_column(Json, default=dict)
    labels: Mapped[dict[str, str]] = mapped_column(Json, default=dict)
    depends_on: Mapped[list[str]] = mapped_column(Json, default=list)
    owner_number: Mapped[int] = mapped_column(default=0)


class TaskLabelRow(Base):
    """Labels once more, for filters; a digest stands for key and value, which may be long."""

    __tablename__ = "task_labels"
    __table_args__ = (Index("ix_task_labels_task", "task_number"),)

    digest: Mapped[str] = mapped_column(String(32), primary_key=True)
    task_number: Mapped[int] = _task_key(primary_key=True, autoincrement=False)


class TaskDependencyRow(Base):
    """task_number starts only after the task with the id depends_on; that one may be gone since.

    For finding what waits for a task; TaskSpecRow has the same for showing it.
    """

    __tablename__ = "task_dependencies"
    __table_args__ = (Index("ix_task_dependencies_on", "depends_on", "task_number"),)

    task_number: Mapped[int] = _task_key(primary_key=True, autoincrement=False)
    position: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    depends_on: Mapped[str] = mapped_column(String(ID_LENGTH))


class AttemptRow(Base):
    """One attempt at a task. facts_seen holds the sequence numbers received, as ranges [first, last]."""

    __tablename__ = "task_attempts"

    task_number: Mapped[int] = _task_key(primary_key=True, autoincrement=False)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    run: Mapped[int] = mapped_column(Integer)
    worker: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(String(32), default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    start_time: Mapped[int] = mapped_column(default=0)
    end_time: Mapped[int] = mapped_column(default=0)
    facts_seen: Mapped[list[list[int]]] = mapped_column(Json, default=list)


class CheckpointRow(Base):
    """A checkpoint whose objects are in the store. A rejected one is kept, but never offered for resuming."""

    __tablename__ = "checkpoints"
    __table_args__ = (
        Index("uq_checkpoints", "task_number", "attempt", "step", unique=True),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    task_number: Mapped[int] = _task_key()
    attempt: Mapped[int] = mapped_column(Integer)
    run: Mapped[int] = mapped_column(Integer)
    step: Mapped[int]
    loss: Mapped[float | None] = mapped_column(Double)
    prefix: Mapped[str]
    size: Mapped[int] = mapped_column(default=0)
    manifest_sha256: Mapped[str] = mapped_column(default="")
    rejected_reason: Mapped[str] = mapped_column(default="")
    create_time: Mapped[int] = mapped_column(default=0)


class MetricPointRow(Base):
    """A point of a metric. A later attempt of the same run overwrites the points that it repeats.

    No foreign key: it would cost a look-up for each point, and a deleted task's points go in small portions.
    """

    __tablename__ = "metric_points"
    __table_args__ = ({"sqlite_with_rowid": False},)

    task_number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(METRIC_NAME_LENGTH), primary_key=True)
    run: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float | None] = mapped_column(MetricValue)
    time: Mapped[int] = mapped_column(default=0)


class LogArchiveRow(Base):
    """How much of a task's log its stored object holds; what follows in the stream is not stored yet.

    Only the first size bytes of the object count: a longer one was written by an archiver that died before it said so.
    """

    __tablename__ = "log_archives"
    __table_args__ = (_index("ix_log_archives_purge", "task_number", where="purged_sequence < sequence"),)

    task_number: Mapped[int] = _task_key(primary_key=True, autoincrement=False)
    lines: Mapped[int] = mapped_column(default=0)
    size: Mapped[int] = mapped_column(default=0)
    # The stream's last message in the object, the attempt that wrote it, and its number among that attempt's.
    sequence: Mapped[int] = mapped_column(default=0)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    batch: Mapped[int] = mapped_column(default=0)
    # Messages up to this one were removed from the stream.
    purged_sequence: Mapped[int] = mapped_column(default=0)


class GarbageRow(Base):
    """Objects that nothing refers to any more and that are to be deleted from the store."""

    __tablename__ = "object_garbage"
    __table_args__ = ({"sqlite_autoincrement": True},)

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    prefix: Mapped[str]
    due_time: Mapped[int] = mapped_column(default=0)


class LeaseRow(Base):
    """Who runs the background duties until when."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(Text)
    expire_time: Mapped[int] = mapped_column(default=0)


class DatasetRow(Base):
    """A version of an uploaded dataset, whose file lies under object_key; only its check is added later.

    format is empty while its rows were not checked.
    """

    __tablename__ = "datasets"
    __table_args__ = (
        Index("uq_datasets_version", "owner", "name", "version", unique=True),
        Index("ix_datasets_owner", "owner", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    owner: Mapped[str] = mapped_column(String(256))
    name: Mapped[str] = mapped_column(String(200))
    version: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(String(64))
    file_name: Mapped[str] = mapped_column(String(255))
    size: Mapped[int] = mapped_column(default=0)
    sha256: Mapped[str] = mapped_column(String(64))
    object_key: Mapped[str]
    samples: Mapped[int] = mapped_column(default=0)
    format: Mapped[str] = mapped_column(default="")
    problems: Mapped[list[str]] = mapped_column(Json, default=list)
    create_time: Mapped[int] = mapped_column(default=0)


class TaskDatasetRow(Base):
    """task_number trains on the uploaded dataset with the id dataset_id; that may go after the task's end."""

    __tablename__ = "task_datasets"
    __table_args__ = (Index("ix_task_datasets_dataset", "dataset_id", "task_number"),)

    task_number: Mapped[int] = _task_key(primary_key=True, autoincrement=False)
    dataset_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)


class TaskSourceRow(Base):
    """task_number is an evaluation, export or training that needs the task with the id source_id until it has ended.

    At position 0 is the task that it starts from; steps are the checkpoints of that one that it needs, as far as they
    are known. At position 1 is the task whose output is that one's base model.
    """

    __tablename__ = "task_sources"
    __table_args__ = (Index("ix_task_sources_source", "source_id", "task_number"),)

    task_number: Mapped[int] = _task_key(primary_key=True, autoincrement=False)
    source_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    position: Mapped[int] = mapped_column(Integer, default=0)
    steps: Mapped[list[int]] = mapped_column(Json, default=list)


class TemplateRow(Base):
    """A user's template; version is that of its newest version."""

    __tablename__ = "templates"
    __table_args__ = (
        Index("uq_templates_name", "owner", "name", unique=True),
        Index("ix_templates_owner", "owner", "number"),
        {"sqlite_autoincrement": True},
    )

    number: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(ID_LENGTH), unique=True)
    owner: Mapped[str] = mapped_column(String(256))
    name: Mapped[str] = mapped_column(String(200))
    version: Mapped[int] = mapped_column(Integer)


class TemplateVersionRow(Base):
    """One version of a template; never changes."""

    __tablename__ = "template_versions"

    template_number: Mapped[int] = mapped_column(
        RowNumber, ForeignKey("templates.number", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(64))
    description: Mapped[str]
    spec: Mapped[bytes] = mapped_column(LargeBinary)
    create_time: Mapped[int] = mapped_column(default=0)


class QuotaRow(Base):
    """What a user may store and has stored.

    used, low_told and exhausted_told are about the month period (year and month, 202611); in a later month they count
    as 0 and false. Without a monthly_allowance the deployment's default holds.
    """

    __tablename__ = "quotas"

    owner: Mapped[str] = mapped_column(String(256), primary_key=True)
    monthly_allowance: Mapped[int | None] = mapped_column(BigInteger)
    exhausted_action: Mapped[int] = mapped_column(SmallInteger)
    period: Mapped[int] = mapped_column(Integer, default=0)
    used: Mapped[int] = mapped_column(default=0)
    low_told: Mapped[bool] = mapped_column(default=False)
    exhausted_told: Mapped[bool] = mapped_column(default=False)


OUTBOX = outbox_table(Base.metadata)
