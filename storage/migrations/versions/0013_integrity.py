"""How often a worker was started on a job, the hash of an adapter's files, the app of a text, and deletions.

Revision ID: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add columns and table."""
    op.add_column("job", sa.Column("starts", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("adapter", sa.Column("sha256", sa.String(), nullable=True))
    op.add_column("text", sa.Column("app", sa.String(), nullable=True))
    op.create_index("ix_text_app", "text", ["app"])
    op.create_table(
        "deletion",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("texts", sa.Integer(), nullable=False),
        sa.Column("erased", sa.Boolean(), nullable=False),
        sa.Column("adapters", sa.JSON(), nullable=False),
        sa.Column("replaced", sa.Boolean(), nullable=False),
        sa.Column("restarts", sa.JSON(), nullable=False),
        sa.Column("job", sa.String(), nullable=True),
    )
    op.create_index("ix_deletion_erased", "deletion", ["erased"])
