"""The real daemon on a disk of its own without a byte left: it starts, and texts are read and deleted."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.faults.disks import CannotInject, Kind, disk
from bench.world import free_port
from tests.support.commands import commands
from tests.support.real_daemon import running

pytestmark = pytest.mark.slow


@pytest.fixture(params=["small", "image"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    kind: Kind = request.param
    try:
        with disk(kind, tmp_path / "disk") as made:
            yield made
    except CannotInject as error:
        pytest.skip(f"root's rights: {error}")


def fill(place: Path) -> Path:
    """Write a file until there is no room; returns it."""
    with (place / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    return place / "filler"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_texts_are_read_and_deleted_on_a_full_disk(place: Path, end: int) -> None:
    port = ("--port", str(free_port()))
    with running(place / "data", arguments=port) as daemon:
        texts = [{"text": f"Wind west, glass rising {number}.", "source": "notes"} for number in range(50)]
        ids = daemon.client.post("/texts", json=texts).json()["ids"]
        daemon.end(end)
    filler = fill(place)
    with running(place / "data", arguments=port) as daemon:
        assert len(daemon.client.get("/texts", params={"query": "glass", "limit": 500}).json()["data"]) == 50
        for deleted in ids[:10]:
            assert daemon.client.delete(f"/texts/{deleted}").json()["deletion"]["erased"]
        assert commands(place / "data")("texts", "delete", *ids[10:20]).stdout == "Deleted 10 texts.\n"
        assert len(daemon.client.get("/texts?limit=500").json()["data"]) == 30
        filler.unlink()
        assert daemon.client.post("/texts", json={"text": "More.", "source": "notes"}).status_code == 201


def test_texts_are_read_where_no_room_was_reserved(place: Path) -> None:
    port = ("--port", str(free_port()))
    with running(place / "data", arguments=port) as daemon:
        (text,) = daemon.client.post("/texts", json={"text": "Wind west.", "source": "notes"}).json()["ids"]
        daemon.end(signal.SIGKILL)
    (place / "data" / "reserve").unlink()
    filler = fill(place)
    with running(place / "data", arguments=port) as daemon:
        assert daemon.client.get(f"/texts/{text}").json()["text"] == "Wind west."
        refused = daemon.client.delete(f"/texts/{text}")
        assert refused.status_code == 507 and "Free some space" in refused.json()["detail"]
        filler.unlink()
        assert daemon.client.delete(f"/texts/{text}").json()["deletion"]["erased"]
