"""Alembic's environment: runs within the connection and transaction that database.schema opened."""

from alembic import context

from task_service.database.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
)
context.run_migrations()
