"""The roles of a job's texts are fixed with them; the owners of a text are a set, and a file has one.

Revision ID: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    """Until now roles followed from the texts, and a text had one app or the person."""
    op.add_column("job_text", sa.Column("learned_in", sa.String(), nullable=True))
    op.add_column("job_text", sa.Column("held_out", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(
        "UPDATE job_text SET (learned_in, held_out) = "
        "(SELECT nullif(learned_in, job_id), held_out FROM text WHERE text.id = text_id)"
    )
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
