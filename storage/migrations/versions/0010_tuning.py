"""Chats, uploaded files, and jobs that are asked for as fine-tuning jobs.

Revision ID: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the table and the columns."""
    op.add_column("text", sa.Column("messages", sa.JSON(), nullable=True))
    op.add_column("job", sa.Column("start_from", sa.String(), nullable=True))
    op.add_column("job", sa.Column("tuning", sa.JSON(), nullable=True))
    op.add_column("adapter", sa.Column("suffix", sa.String(), nullable=True))
    op.create_table(
        "uploaded_file",
        sa.Column("id", sa.String(), primary_key=True),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=True),
    )
    op.create_index("ix_uploaded_file_created_at", "uploaded_file", ["created_at"])
