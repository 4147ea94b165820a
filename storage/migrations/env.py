"""Alembic's entry: runs the revisions on the connection that `pocketllm.storage.migrate` hands over."""

from alembic import context
from sqlmodel import SQLModel

from pocketllm.storage import tables

assert tables  # importing it is what fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=SQLModel.metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
