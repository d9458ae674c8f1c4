"""Uploaded datasets, templates of users, quotas of checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _datasets()
    _templates()
    op.create_table(
        "quotas",
        sa.Column("owner", sa.String(length=256), nullable=False),
        sa.Column("monthly_allowance", sa.BigInteger(), nullable=True),
        sa.Column("exhausted_action", sa.SmallInteger(), nullable=False),
        sa.Column("period", sa.Integer(), nullable=False),
        sa.Column("used", sa.BigInteger(), nullable=False),
        sa.Column("low_told", sa.Boolean(), nullable=False),
        sa.Column("exhausted_told", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )


def _datasets() -> None:
    op.create_table(
        "datasets",
        sa.Column("number", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("owner", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("file_name", sa.String(length=255), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("problems", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_datasets_version", "datasets", ["owner", "name", "version"], unique=True)
    op.create_index("ix_datasets_owner", "datasets", ["owner", "number"])
    op.create_table(
        "task_datasets",
        sa.Column("task_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("dataset_id", sa.String(length=26), nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_number", "dataset_id"),
    )
    op.create_index("ix_task_datasets_dataset", "task_datasets", ["dataset_id", "task_number"])


def _templates() -> None:
    op.create_table(
        "templates",
        sa.Column("number", ROW_NUMBER, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=26), nullable=False),
        sa.Column("owner", sa.String(length=256), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.UniqueConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("uq_templates_name", "templates", ["owner", "name"], unique=True)
    op.create_index("ix_templates_owner", "templates", ["owner", "number"])
    op.create_table(
        "template_versions",
        sa.Column("template_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(length=64), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["template_number"], ["templates.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("template_number", "version"),
    )
