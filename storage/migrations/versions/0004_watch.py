"""What a run's looks at text kept aside have seen.

Revision ID: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column."""
    op.add_column("job", sa.Column("watch", sa.JSON(), nullable=True))
