"""The full-text index of the texts.

Revision ID: 0014
"""

import sqlalchemy as sa
from alembic import op

from pocketllm.storage.repositories.passages import CREATE_INDEX, index

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Create the index, and fill it."""
    op.execute(CREATE_INDEX)
    connection = op.get_bind()
    texts = connection.execute(sa.text("SELECT id, text, completion FROM text"))
    index(connection, ((identity, text, completion) for identity, text, completion in texts))
