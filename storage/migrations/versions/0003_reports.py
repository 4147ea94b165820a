"""What a job has learned, for people.

Revision ID: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the table. Jobs that ended before it have no report."""
    op.create_table(
        "report",
        sa.Column("job_id", sa.String(), sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("numbers", sa.JSON(), nullable=False),
        sa.Column("content", sa.JSON(), nullable=True),
    )
