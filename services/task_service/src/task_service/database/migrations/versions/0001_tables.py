"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "leases",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("expire_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "metric_points",
        sa.Column("task_number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("run", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("step", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("task_number", "name", "run", "step"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "object_garbage",
        sa.Column("number", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("due_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "outbox",
        sa.Column("position", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("message_id", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("create_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("position"),
        sa.UniqueConstraint("message_id"),
    )
    op.create_index("ix_outbox_not_before", "outbox", ["not_before", "position"])

    op.create_table(
        "tasks",
        sa.Column("number", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("owner", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), nullable=False),
        sa.Column("base_model", sa.Text(), nullable=False),
        sa.Column("pool", sa.String(length=32), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("request_hash", sa.String(length=64), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("dispatch_attempt", sa.Integer(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("blocked", sa.Boolean(), nullable=False),
        sa.Column("stop_mode", sa.SmallInteger(), nullable=False),
        sa.Column("resume_step", sa.BigInteger(), nullable=False),
        sa.Column("checkpoint_high", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_time", sa.BigInteger(), nullable=False),
        sa.Column("dispatch_time", sa.BigInteger(), nullable=False),
        sa.Column("error_reason", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=False),
        sa.Column("error_problems", sa.Text(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=False),
        sa.Column("end_time", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.Double(), nullable=False),
        sa.Column("percent", sa.Double(), nullable=False),
        sa.Column("eta_seconds", sa.Double(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("metric_steps", sa.Text(), nullable=False),
        sa.Column("output_dir", sa.Text(), nullable=False),
        sa.Column("output_prefix", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.Text(), nullable=False),
        sa.Column("log_attempt", sa.Integer(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.Column("delete_time", sa.BigInteger(), nullable=False),
        sa.Column("reap_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_tasks_log",
        "tasks",
        ["state", "number"],
        sqlite_where=sa.text("log_attempt < attempt"),
        postgresql_where=sa.text("log_attempt < attempt"),
    )
    op.create_index("ix_tasks_name", "tasks", ["delete_time", "name", "number", "state", "kind"])
    op.create_index("ix_tasks_number", "tasks", ["delete_time", "number", "state", "kind", "name"])
    op.create_index("ix_tasks_owner", "tasks", ["owner", "delete_time", "number", "state", "kind", "name"])
    op.create_index("ix_tasks_owner_name", "tasks", ["owner", "delete_time", "name", "number", "state", "kind"])
    op.create_index("ix_tasks_owner_start", "tasks", ["owner", "delete_time", "start_time", "number", "state", "kind"])
    op.create_index(
        "ix_tasks_owner_update", "tasks", ["owner", "delete_time", "update_time", "number", "state", "kind"]
    )
    op.create_index("ix_tasks_start", "tasks", ["delete_time", "start_time", "number", "state", "kind"])
    op.create_index("ix_tasks_state", "tasks", ["delete_time", "state", "number"])
    op.create_index("ix_tasks_update", "tasks", ["delete_time", "update_time", "number", "state", "kind"])
    op.create_index("uq_tasks_request", "tasks", ["owner", "request_id"], unique=True)

    op.create_table(
        "users",
        sa.Column("number", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=256), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "checkpoints",
        sa.Column("number", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("task_number", ROW_NUMBER, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=True),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("manifest_sha256", sa.Text(), nullable=False),
        sa.Column("rejected_reason", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("number"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_checkpoints", "checkpoints", ["task_number", "attempt", "step"], unique=True)

    op.create_table(
        "log_archives",
        sa.Column("task_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("lines", sa.BigInteger(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("purged_sequence", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_number"),
    )
    op.create_index(
        "ix_log_archives_purge",
        "log_archives",
        ["task_number"],
        sqlite_where=sa.text("purged_sequence < sequence"),
        postgresql_where=sa.text("purged_sequence < sequence"),
    )

    op.create_table(
        "task_attempts",
        sa.Column("task_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=False),
        sa.Column("end_time", sa.BigInteger(), nullable=False),
        sa.Column("facts_seen", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_number", "attempt"),
    )
    op.create_table(
        "task_dependencies",
        sa.Column("task_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("depends_on", sa.String(length=26), nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_number", "position"),
    )
    op.create_index("ix_task_dependencies_on", "task_dependencies", ["depends_on", "task_number"])

    op.create_table(
        "task_labels",
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.Column("task_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("digest", "task_number"),
    )
    op.create_index("ix_task_labels_task", "task_labels", ["task_number"])

    op.create_table(
        "task_specs",
        sa.Column("task_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("parameter_sources", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("depends_on", sa.Text(), nullable=False),
        sa.Column("owner_number", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_number"),
    )
