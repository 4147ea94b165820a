"""Which of a job's texts are new to it is fixed with them.

Revision ID: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"

_ROLES = "UPDATE job_text SET learned_in = (SELECT nullif(learned_in, job_id) FROM text WHERE text.id = text_id)"


def upgrade() -> None:
    """Add the column, and fill it."""
    op.add_column("job_text", sa.Column("learned_in", sa.String(), nullable=True))
    op.execute(_ROLES)
