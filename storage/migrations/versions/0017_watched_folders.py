"""Folders that are watched; no history of readings, and one form of the step log.

Revision ID: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """One new table, and two that nothing reads any more: of jobs that had ended the steps are gone with theirs."""
    op.create_table(
        "watched_file",
        sa.Column("path", sa.String(), primary_key=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("missing_since", sa.DateTime(), nullable=True),
    )
    op.drop_table("sensor_sample")
    op.drop_table("compact_step_log")
