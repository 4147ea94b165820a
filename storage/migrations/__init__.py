"""The schema's history, for Alembic. Add a numbered file under versions/ and move HEAD."""

#: The newest revision. Kept here so that a start with nothing to migrate need not import Alembic.
HEAD = "0004"
