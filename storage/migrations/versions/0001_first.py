"""The first schema. A new database is made from the tables (migrate.py).

Revision ID: 0001
"""

revision = "0001"
down_revision = None
