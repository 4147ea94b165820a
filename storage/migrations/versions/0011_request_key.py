"""A job's Idempotency-Key, in place of kept answers.

Revision ID: 0011
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Drop the table and add the column."""
    op.drop_table("kept_answer")
    op.add_column("job", sa.Column("request_key", sa.String(), nullable=True))
    op.create_index("ix_job_request_key", "job", ["request_key"], unique=True)
