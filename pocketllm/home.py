"""Finds the daemon: its data folder, its address and the owner's token.

The daemon writes its address to `daemon.json` and the token to `tokens.json` in its data folder. Any app can listen at
a port while the daemon is down, so the token is sent over the folder's Unix socket, or to a port that `daemon.json`
names for a process that still runs.
"""

import json
import os
import pwd
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pocketllm import __version__
from pocketllm.daemon.paths import config_file, default_data_dir
from pocketllm.daemon.processes import started_ticks
from pocketllm.errors import CommandError, Document, UsageError

DEFAULT_URL = "http://127.0.0.1:2407"
_NOT_ANNOUNCED = "the data folder {} names no running daemon at {}; set POCKETLLM_TOKEN to send a token."
LOOPBACK_HOSTS = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The daemon that a command talks to."""

    url: str  #: without a slash at the end
    token: str | None  #: None when none was found, or it may not be sent there; the open routes answer all the same
    without_token: str = ""  #: why there is none, and what to do
    socket: Path | None = None  #: the daemon's Unix socket, in a folder of its owner alone; used in place of the port


def configured_data_dir() -> Path:
    """Return the data folder of a daemon that was started without --data-dir, as its settings choose it.

    That is POCKETLLM_DATA_DIR, else `data_dir` in config.toml, else the usual place. The file is read here and not
    by the settings themselves, whose library takes longer to import than most commands take to run.
    """
    if named := os.environ.get("POCKETLLM_DATA_DIR"):
        return Path(named)
    try:
        named = tomllib.loads(config_file().read_text(encoding="utf-8")).get("data_dir")
    except (OSError, ValueError):  # which the daemon reports when it starts
        named = None
    return Path(named) if isinstance(named, str) else default_data_dir()


def become_owner(data_dir: Path | None) -> None:
    """Let root become the owner of the data folder for good: what root makes there, the owner's daemon cannot write.

    HOME and the places of settings are then the owner's, too. Raises CommandError if the owner cannot run PocketLLM.
    """
    folder = (data_dir or configured_data_dir()).absolute()
    if os.geteuid() != 0 or not folder.exists() or (owner := folder.stat().st_uid) == 0:
        return
    try:
        user = pwd.getpwuid(owner)
    except KeyError as error:
        raise CommandError(f"{folder} belongs to user {owner}, who does not exist. Change its owner.") from error
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(owner)
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        os.environ.pop(name, None)
    os.environ |= {"HOME": user.pw_dir, "LOGNAME": user.pw_name, "POCKETLLM_DATA_DIR": str(folder)}
    for file in (__file__, os.__file__):
        if not os.access(file, os.R_OK):
            raise CommandError(f"User {user.pw_name} cannot read {file}. Install where all users can, as in /opt.")


def find_target(url: str | None, data_dir: Path | None) -> Target:
    """Return where to send requests and with which token.

    The address is the first of these that is set: `url`, the `daemon.json` of `data_dir`, POCKETLLM_URL, the
    `daemon.json` of the configured folder, DEFAULT_URL. The token is POCKETLLM_TOKEN, else the folder's owner
    token if the folder's daemon is at this address. Raises UsageError for an invalid address.
    """
    folder = data_dir or configured_data_dir()
    announced = announced_target(folder)
    given = url or (announced.url if announced and data_dir else None) or os.environ.get("POCKETLLM_URL")
    if given and not is_address(given):
        raise UsageError(f"{given} is not a daemon's address. An address looks like {DEFAULT_URL}.")
    address = (given or (announced.url if announced else DEFAULT_URL)).rstrip("/")
    if announced and _same_port(address, announced.url):
        found = replace(announced, url=address)
    else:
        found = Target(url=address, token=None, without_token=_NOT_ANNOUNCED.format(folder, address))
    token = os.environ.get("POCKETLLM_TOKEN")
    return replace(found, token=token) if token else found


def announced_target(folder: Path) -> Target | None:
    """Return the daemon that the folder's `daemon.json` names; None when there is no such file or it is invalid."""
    record = read_document(folder / "daemon.json")
    url, socket = record.get("url"), record.get("socket")
    if not isinstance(url, str) or not is_address(url):
        return None
    token = read_text_field(folder / "tokens.json", "owner")
    if token is None:
        without = f"{folder / 'tokens.json'} has no owner token; give --data-dir or set POCKETLLM_TOKEN."
        return Target(url=url, token=None, without_token=without)
    if isinstance(socket, str):
        return Target(url=url, token=token, socket=Path(socket))
    if _is_running(record):
        return Target(url=url, token=token)
    return Target(url=url, token=None, without_token=_NOT_ANNOUNCED.format(folder, url))


def running_settings(folder: Path) -> Document | None:
    """Return the settings of the daemon that runs on this folder; None if there is none, or one of another version."""
    record = read_document(folder / "daemon.json")
    settings, is_ours = record.get("settings"), record.get("version") == __version__
    return settings if isinstance(settings, dict) and is_ours and _is_running(record) else None


def owner_token(data_dir: Path | None) -> str:
    """Return the owner's token of a data folder. Raises CommandError when the folder has none yet."""
    tokens_file = (data_dir or configured_data_dir()) / "tokens.json"
    token = read_text_field(tokens_file, "owner")
    if token is None:
        raise CommandError(
            f"{tokens_file} has no access token yet. The daemon creates one when it first starts: "
            "run `pocketllm serve`, then try again."
        )
    return token


def _same_port(one: str, other: str) -> bool:
    """Tell whether both are the same port of this device."""
    parts = (urlsplit(one), urlsplit(other))
    return all(part.hostname in LOOPBACK_HOSTS for part in parts) and parts[0].port == parts[1].port


def _is_running(record: Document) -> bool:
    """Tell whether the process that wrote a `daemon.json` still runs."""
    pid, started = record.get("pid"), record.get("process_started")
    return isinstance(pid, int) and started is not None and started_ticks(pid) == started


def is_address(url: str) -> bool:
    """Tell whether this is an http or https address with a host and a possible port."""
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def read_text_field(path: Path, field: str) -> str | None:
    """Return a string of a small JSON file; None when the file or the field is missing. Raises as read_document."""
    value = read_document(path).get(field)
    return value if isinstance(value, str) and value else None


def read_document(path: Path) -> Document:
    """Return a small JSON file; empty when it is missing or holds something else.

    A file that this user may not read is an error, not an absence: CommandError says so.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise CommandError(f"This user cannot read {path}. Run the command as the daemon's user.") from error
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
