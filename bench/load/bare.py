"""The bare endpoint: what one would write in ten minutes on the daemon's stack to put a text on disk.

One route that checks a small body and inserts a row, a transaction a request, in FastAPI's threads; SQLite as durable
as the daemon has it (WAL, synchronous=FULL), uvicorn as the daemon starts it. No token, no ids by content, no index.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from sqlite3 import Connection
from typing import Annotated

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from pydantic import Field as Described
from sqlalchemy import MetaData, event
from sqlmodel import Field, Session, SQLModel, create_engine

from bench.common.child import command, write_line
from bench.common.harness import ROOT


class Apart(SQLModel):
    """What is no table of the daemon's."""

    metadata = MetaData()


class Note(Apart, table=True):
    """A text."""

    id: int | None = Field(default=None, primary_key=True)
    source: str
    text: str
    created_at: datetime


class NoteIn(BaseModel):
    """A text as it comes in."""

    text: Annotated[str, Described(min_length=1, max_length=1_000_000)]
    source: Annotated[str, Described(min_length=1, max_length=200)]


def create_app(database: Path) -> FastAPI:
    """The application, its table made."""
    engine = create_engine(f"sqlite:///{database}", connect_args={"timeout": 15})  # as in pocketllm.storage.database
    app = FastAPI()

    @event.listens_for(engine, "connect")
    def configure(connection: Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @app.post("/texts", status_code=HTTPStatus.CREATED)
    def add(note: NoteIn) -> dict[str, list[int | None]]:
        row = Note(source=note.source, text=note.text, created_at=datetime.now(UTC))
        # Otherwise its id would be read back from the database.
        with Session(engine, expire_on_commit=False) as session:
            session.add(row)
            session.commit()
        return {"ids": [row.id]}

    Note.metadata.create_all(engine)
    return app


@contextmanager
def running_bare(database: Path) -> Iterator[int]:
    """The bare endpoint in a process of its own; its port. It is ended with the block."""
    with subprocess.Popen(command(__name__, "serve", database=database), cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("The bare endpoint did not start; what it says stands above.")
            yield int(json.loads(line)["port"])
        finally:
            process.kill()


def serve(database: str) -> None:
    """Print the port, and serve until the end."""
    app = create_app(Path(database))
    # With the protocol named, as in pocketllm.server: else an answer waits 40 ms for more to send with it.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        write_line({"port": listener.getsockname()[1]})
        config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, date_header=False)
        uvicorn.Server(config).run(sockets=[listener])
