"""Parsers of files that others have written, on damaged ones: whatever the bytes, a result or an error of their own."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketllm.api.bodies import parse
from pocketllm.daemon.errors import BadSettings, DaemonError, InvalidValue
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import load_settings
from pocketllm.daemon.tools.backup import read_backup, write_backup
from pocketllm.engine.errors import EngineError
from pocketllm.engine.formats.gguf_source import GgufSource
from pocketllm.engine.formats.model_folder import Manifest
from pocketllm.engine.formats.safetensors_io import read_header
from pocketllm.readers.base import Kind, ReadOptions
from pocketllm.readers.reading import read
from pocketllm.readers.walk import Entry
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store

pytestmark = pytest.mark.slow

EXAMPLES = 300
NODES = {"a": {"message": {"author": {"role": "user"}, "content": {"parts": ["words"]}}, "parent": None}}
TELEGRAM = {
    "personal_information": {"user_id": 1},
    "chats": {"list": [{"messages": [{"from_id": "user1", "text": "x"}]}]},
}
MAIL = b"From: Anna <a@b.c>\nDate: Mon, 1 Jan 2024 10:00:00 +0000\nContent-Type: text/html\n\n<p>words <b>and"
IMPORTED = {
    "a.md": b"---\ntitle: x\n---\n# Notes\n\nwords\n\n> quoted",
    "a.html": b"<html><head><title>t</title></head><body><p>words<br>more<script>x</script></body></html>",
    "a.eml": MAIL,
    "a.mbox": b"From a@b.c Mon Jan  1 10:00:00 2024\n" + MAIL + b"\n\nFrom a@b.c Mon Jan  1 10:00:00 2024\n" + MAIL,
    "a.txt": b"31.12.20, 23:59 - Anna: Tea?\n31.12.20, 23:59 - Bert: Always.\n",
    "a.csv": b'prompt,completion\nAnna,Tea?\nBert,"Al\nways"\n',
    "a.jsonl": b'{"text": "words"}\n{"prompt": "a", "completion": "b"}\n',
    "chatgpt.json": json.dumps([{"mapping": NODES, "current_node": "a"}]).encode(),
    "claude.json": json.dumps([{"chat_messages": [{"sender": "human", "text": "words"}]}]).encode(),
    "telegram.json": json.dumps(TELEGRAM).encode(),
}


class Parser(NamedTuple):
    """What reads a file, from sound bytes that are damaged, and the errors that it may raise."""

    name: str
    sound: bytes
    reads: Callable[[Path], object]
    raises: tuple[type[Exception], ...] = ()


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """The bytes after a few edits: replaced, cut out, put in, repeated, cut off."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        until = min(len(data), at + draw(st.sampled_from([0, 1, 2, 8, 64, len(data)])))
        data[at:until] = draw(st.binary(max_size=9)) + bytes(data[at:until]) * draw(st.sampled_from([0, 1, 2, 50]))
        del data[1_000_000:]  # six times fifty would fill any memory
    return bytes(data)


def imported(path: Path) -> None:
    for kind in (None, *Kind):
        options = ReadOptions(me=frozenset({"anna"}), format=kind)
        list(read(Entry(path=path, name=path.name, named=True), options)[1])


def backup(folder: Path) -> bytes:
    data = DataFolder(folder)
    data.make()
    store = Store.open(data.database)
    store.texts.add([NewText(text="words", source="test")], now=datetime.now(UTC))
    store.close()
    file = io.BytesIO()
    write_backup(data, file, now=datetime.now(UTC))
    return file.getvalue()


def parsers(folder: Path, gguf: Path, model: Path) -> dict[str, Parser]:
    """All of them, by name."""
    toml = b'model = "tiny"\n[training]\nsteps = 30\ntemplate = {pattern = "{text} {label}", words = {a = "b"}}\n'
    weights = next(model.glob("*.safetensors"))
    manifest = (model / "pocketllm.json").read_bytes()
    bodies = {
        "application/json": b'[{"text": "Tea?"}, {"prompt": "a", "completion": "b"}]',
        "application/x-ndjson": IMPORTED["a.jsonl"],
    }
    return {
        "gguf": Parser("a.gguf", gguf.read_bytes()[:60_000], GgufSource, (EngineError,)),
        "safetensors": Parser("a.safetensors", weights.read_bytes()[:20_000], read_header, (EngineError,)),
        "manifest": Parser("a", manifest, lambda path: Manifest.model_validate_json(path.read_bytes()), (ValueError,)),
        "backup": Parser("a.tar", backup(folder / "backup"), unpacked, (DaemonError,)),
        "settings": Parser("config.toml", toml, configured, (BadSettings, DaemonError)),
        **{kind: Parser("body", sound, partial(parsed, kind), (InvalidValue,)) for kind, sound in bodies.items()},
        **{name: Parser(name, sound, imported) for name, sound in IMPORTED.items()},
    }


def parsed(kind: str, path: Path) -> Any:
    return list(parse(path.read_bytes(), kind, "test", 10**6))


def unpacked(path: Path) -> Any:
    into = path.parent / "into"
    into.mkdir(exist_ok=True)
    return read_backup(path, into)


def configured(path: Path) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETLLM_CONFIG", str(path))
        return load_settings({})


NAMES = ["gguf", "safetensors", "manifest", "backup", "settings", "application/json", "application/x-ndjson", *IMPORTED]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_bytes_come(name: str, tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path, tiny: Any) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    parser = parsers(folder, tiny_gguf, tiny.path)[name]

    @settings(max_examples=EXAMPLES, deadline=5000, suppress_health_check=[HealthCheck.too_slow])
    @given(content=damaged(parser.sound))
    def fuzz(content: bytes) -> None:
        (folder / parser.name).write_bytes(content)
        try:
            parser.reads(folder / parser.name)
        except parser.raises as error:
            assert str(error)

    fuzz()
