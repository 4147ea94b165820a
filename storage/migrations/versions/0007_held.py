"""Jobs that the owner has paused.

Revision ID: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the column."""
    op.add_column("job", sa.Column("held", sa.Boolean(), nullable=False, server_default=sa.false()))
