"""The oldest schema that is known. A new database is made from the tables (migrate.py).

Revision ID: 0015
"""

revision = "0015"
down_revision = None
