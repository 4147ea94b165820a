"""Kinds of example, several probes a step, what a job trains and needs, and a short form of ended jobs' journals.

Revision ID: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

ROWS_AT_ONCE = 1000


def upgrade() -> None:
    """Add the columns and the table; one scalar a step becomes a list of one."""
    # Columns are added in place. A batch operation would copy the table and drop the old one, and to drop `job` or
    # `text` is to delete its rows, with everything that hangs on them by ON DELETE CASCADE.
    op.add_column("text", sa.Column("completion", sa.String(), nullable=True))
    op.add_column("text", sa.Column("label", sa.String(), nullable=True))
    op.add_column("job", sa.Column("mode", sa.String(), nullable=False, server_default="lora"))
    op.add_column("job", sa.Column("predicted_bytes", sa.Integer(), nullable=True))
    op.add_column("job", sa.Column("plan", sa.JSON(), nullable=True))
    op.add_column("adapter", sa.Column("mode", sa.String(), nullable=False, server_default="lora"))
    op.create_table(
        "compact_journal",
        sa.Column("job_id", sa.String(), sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("steps", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
    _scalars_in_place_of_scalar()


def _scalars_in_place_of_scalar() -> None:
    op.rename_table("step", "step_0001")
    step = op.create_table(
        "step",
        sa.Column("job_id", sa.String(), sa.ForeignKey("job.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("step", sa.Integer(), primary_key=True),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("scalars", sa.JSON(), nullable=False),
        sa.Column("loss", sa.Float(), nullable=False),
        sa.Column("learning_rate", sa.Float(), nullable=False),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
    )
    connection = op.get_bind()
    # Not by SQLite's json_array(), which writes 15 digits: Python's JSON keeps every bit of a float.
    rows = connection.execute(sa.text("SELECT * FROM step_0001")).mappings()
    for part in rows.partitions(ROWS_AT_ONCE):
        connection.execute(sa.insert(step), [{**row, "scalars": [row["scalar"]]} for row in part])
    op.drop_table("step_0001")
