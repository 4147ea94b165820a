"""What the sensors have seen over the last days.

Revision ID: 0009
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "sample",
        sa.Column("at", sa.DateTime(), primary_key=True),
        sa.Column("battery", sa.Float(), nullable=True),
        sa.Column("temperature", sa.Float(), nullable=True),
        sa.Column("heat", sa.Float(), nullable=True),
        sa.Column("memory", sa.Float(), nullable=True),
    )
