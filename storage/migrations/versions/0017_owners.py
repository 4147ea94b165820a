"""The owners of a text are a set, and a file has one.

Revision ID: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    """Give each text to its app or the person, as far as is known, and all files to the person."""
    op.create_table(
        "text_owner",
        sa.Column("text_id", sa.String(), sa.ForeignKey("text.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("owner", sa.String(), primary_key=True, index=True),
        sa.Column("sent_at", sa.DateTime(), nullable=False),
    )
    op.execute("INSERT INTO text_owner SELECT id, coalesce(app, 'owner'), created_at FROM text")
    op.drop_index("ix_text_app", "text")
    op.drop_column("text", "app")
    op.add_column("uploaded_file", sa.Column("owner", sa.String(), nullable=False, server_default="owner"))
