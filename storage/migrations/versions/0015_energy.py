"""What flowed into the battery during a run, and out of it.

Revision ID: 0015
"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the column."""
    op.add_column("run_window", sa.Column("battery_watt_hours", sa.Float(), nullable=True))
