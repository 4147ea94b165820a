"""A small real llama-server: the same arguments and HTTP, and tokens that count up from the prompt's last one."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

#: What it does instead of answering.
Trouble = Literal["none", "exits", "loads", "crashes", "rubbish", "refuses", "silent", "foreign", "pings"]
#: Tokens that are given before it crashes.
BEFORE_THE_CRASH = 3
#: It counts within these, and counts down with an adapter: printable characters of `byte_tokens`.
FIRST, LAST = 40, 90

_PROGRAM = """#!{python}
import json, os, sys, time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer

TROUBLE, NOTES, FIRST, LAST = {trouble!r}, Path({notes!r}), {first}, {last}
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))

def note(**what):
    with NOTES.open("a") as file:
        file.write(json.dumps({{"pid": os.getpid(), **what}}) + "\\n")

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def log_message(self, *_): pass
    def address_string(self): return ""

    def do_GET(self):
        self.send_response(503 if TROUBLE == "loads" else 200)
        self.end_headers()

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        note(request=request)
        if TROUBLE == "silent":
            time.sleep(600)
        self.send_response(400 if TROUBLE == "refuses" else 200)
        self.end_headers()
        token, tokens = request["prompt"][-1], []
        step = -1 if any(lora["scale"] for lora in request["lora"]) else 1
        for count in range(1, max(1, request["n_predict"]) + 1):  # llama.cpp makes one even for none
            token = FIRST + (token - FIRST + step) % (LAST - FIRST)
            if TROUBLE == "crashes" and count > {before}:
                os._exit(1)
            try:
                if TROUBLE == "pings":
                    while True:
                        self.wfile.write(b":\\n\\n")
                        time.sleep(0.02)
                elif TROUBLE == "rubbish":
                    self.wfile.write(b"data: {{what is this\\n\\n")
                else:
                    shown = -5 if TROUBLE == "foreign" else token
                    self.say(content="", tokens=[shown], stop=False, tokens_predicted=count)
            except ConnectionError:  # reset, where something was on its way; else a broken pipe
                note(stopped_at=count)
                return
        self.say(content="", tokens=[], stop=True, stop_type="limit", tokens_predicted=request["n_predict"])

    def say(self, **event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")

note(arguments=sys.argv[1:])
if TROUBLE == "exits":
    sys.exit("it is no model of mine")
ThreadingUnixStreamServer(options["--host"], Handler).serve_forever()
"""


@dataclass(frozen=True)
class LlamaDouble:
    """An executable that notes what it is asked for."""

    path: Path
    notes_file: Path

    def notes(self, kind: str) -> list[Any]:
        """What it noted: "arguments" at each start, "request" of each, "stopped_at" where one broke off."""
        lines = self.notes_file.read_text().splitlines() if self.notes_file.exists() else []
        return [note[kind] for line in lines if kind in (note := json.loads(line))]

    @property
    def pids(self) -> list[int]:
        """Of all that were started."""
        lines = self.notes_file.read_text().splitlines() if self.notes_file.exists() else []
        return [note["pid"] for line in lines if "arguments" in (note := json.loads(line))]


def llama_double(folder: Path, trouble: Trouble = "none") -> LlamaDouble:
    """Write `folder`/llama-server, in place of one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, notes = folder / "llama-server", folder / "notes.jsonl"
    values = {"python": sys.executable, "trouble": trouble, "notes": str(notes), "first": FIRST, "last": LAST}
    path.write_text(_PROGRAM.format(**values, before=BEFORE_THE_CRASH), encoding="utf-8")
    path.chmod(0o755)
    return LlamaDouble(path, notes)


def counted(after: int, count: int, *, step: int = 1) -> list[int]:
    """The tokens that it gives behind this one."""
    return [FIRST + (after - FIRST + step * number) % (LAST - FIRST) for number in range(1, count + 1)]
