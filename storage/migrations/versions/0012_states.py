"""What was parsed out of events becomes columns; tables and columns get the field's names.

Revision ID: 0012
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_COMPARED_WITH = """
UPDATE job SET compared_with = (
    SELECT CASE message WHEN 'the base model' THEN 'base' ELSE message END
    FROM event WHERE event.job_id = job.id AND kind = 'compared with'
)
"""
#: The newest of a job's two kinds of event counts.
_WITHDRAWN = """
UPDATE job SET withdrawn = 1 WHERE 'withdrawn' = (
    SELECT kind FROM event WHERE event.job_id = job.id AND kind IN ('withdrawn', 'brought back')
    ORDER BY id DESC LIMIT 1
)
"""
_PLAN = """
UPDATE job SET plan = json_remove(
    json_set(plan, '$.micro_batch', json_extract(plan, '$.rows_at_once'), '$.replicas', json_extract(plan, '$.lanes')),
    '$.rows_at_once', '$.lanes'
) WHERE json_extract(plan, '$.rows_at_once') IS NOT NULL
"""
_REPORT = """
UPDATE report SET numbers = json_object(
    'verdict', json(json_extract(numbers, '$.judgement')), 'verbatim_recall', json(json_extract(numbers, '$.leak'))
)
"""


def upgrade() -> None:
    """Add, fill and rename. No index keeps an old table's name."""
    op.add_column("job", sa.Column("compared_with", sa.String(), nullable=True))
    op.add_column("job", sa.Column("withdrawn", sa.Boolean(), nullable=False, server_default=sa.false()))
    for statement in (_COMPARED_WITH, _WITHDRAWN, _PLAN, _REPORT):
        op.execute(statement)
    op.execute("ALTER TABLE job RENAME COLUMN watch TO early_stopping")
    op.execute("ALTER TABLE job RENAME COLUMN held TO paused_by_owner")
    op.drop_index("ix_opening_ended_at", "opening")
    op.rename_table("opening", "idle_window")
    op.create_index("ix_idle_window_ended_at", "idle_window", ["ended_at"])
    op.rename_table("owners_word", "preference")
    op.execute("ALTER TABLE preference RENAME COLUMN name TO key")
    op.execute("UPDATE preference SET key = 'snoozed_until' WHERE key = 'snoozed until'")
    op.rename_table("sample", "sensor_sample")
    op.rename_table("compact_journal", "compact_step_log")
