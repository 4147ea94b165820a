"""When workers ran, and what the owner has said of when they may.

Revision ID: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the tables. Of what ran before nothing is known."""
    op.create_table(
        "run_window",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("job_id", sa.String(), sa.ForeignKey("job.id", ondelete="CASCADE"), nullable=False),
        sa.Column("began_at", sa.DateTime(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
        sa.Column("began_because", sa.String(), nullable=False),
        sa.Column("ended_because", sa.String(), nullable=True),
        sa.Column("cpu_seconds", sa.Float(), nullable=False),
        sa.Column("battery_began_percent", sa.Float(), nullable=True),
        sa.Column("battery_ended_percent", sa.Float(), nullable=True),
        sa.Column("hottest_battery_celsius", sa.Float(), nullable=True),
        sa.Column("hottest_zone_celsius", sa.Float(), nullable=True),
    )
    op.create_index("ix_run_window_job_id", "run_window", ["job_id"])
    op.create_index("ix_run_window_began_at", "run_window", ["began_at"])
    op.create_table(
        "opening",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("began_at", sa.DateTime(), nullable=False),
        sa.Column("ended_at", sa.DateTime(), nullable=True),
    )
    op.create_index("ix_opening_ended_at", "opening", ["ended_at"])
    op.create_table(
        "owners_word",
        sa.Column("name", sa.String(), primary_key=True),
        sa.Column("value", sa.JSON(), nullable=False),
    )
