"""The first schema. A new database is made from the tables (migrate.py).

Revision ID: 0003
"""

revision = "0003"
down_revision = None
