"""The first schema. A new database is made from the tables (migrate.py).

Revision ID: 0004
"""

revision = "0004"
down_revision = None
