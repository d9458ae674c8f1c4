"""Tasks that evaluations and exports start from."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "task_sources",
        sa.Column("task_number", ROW_NUMBER, autoincrement=False, nullable=False),
        sa.Column("source_id", sa.String(length=26), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("steps", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["task_number"], ["tasks.number"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_number", "source_id"),
    )
    op.create_index("ix_task_sources_source", "task_sources", ["source_id", "task_number"])
