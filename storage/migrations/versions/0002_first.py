"""The first schema. A new database is made from the tables (migrate.py).

Revision ID: 0002
"""

revision = "0002"
down_revision = None
