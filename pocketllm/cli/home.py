"""Finds the daemon: its data folder, its address and the owner's token.

The daemon writes its address to `daemon.json` and the token to `tokens.json` in its data folder.
"""

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pocketllm.cli.errors import CommandError, Document, UsageError
from pocketllm.daemon.paths import config_file, default_data_dir

DEFAULT_URL = "http://127.0.0.1:2407"
LOOPBACK_HOSTS = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, kw_only=True)
class Target:
    """The daemon that a command talks to."""

    url: str
    """Without a slash at the end."""
    token: str | None
    """None when no token was found; the open routes answer all the same."""
    tokens_file: Path
    """Where the owner's token was looked for."""


def configured_data_dir() -> Path:
    """Return the data folder of a daemon that was started without --data-dir, as its settings choose it.

    That is POCKETLLM_DATA_DIR, else `data_dir` in config.toml, else the usual place. The file is read here and not
    by the settings themselves, whose library takes longer to import than most commands take to run.
    """
    if named := os.environ.get("POCKETLLM_DATA_DIR"):
        return Path(named)
    named = config_document().get("data_dir")
    return Path(named) if isinstance(named, str) else default_data_dir()


def configured_text_bytes() -> int | None:
    """Return the setting `max_text_bytes` of the environment or config.toml; None where it is not set."""
    named = os.environ.get("POCKETLLM_MAX_TEXT_BYTES") or config_document().get("max_text_bytes")
    try:
        return max(1, int(named)) if isinstance(named, int | str) else None
    except ValueError:
        return None


def config_document() -> Document:
    """Return config.toml; empty where it cannot be read, which the daemon reports when it starts."""
    try:
        return tomllib.loads(config_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def find_target(url: str | None, data_dir: Path | None) -> Target:
    """Return where to send requests and with which token.

    The address is the first of these that is set: `url`, the `daemon.json` of `data_dir`, POCKETLLM_URL, the
    `daemon.json` of the configured folder, DEFAULT_URL. The token is POCKETLLM_TOKEN, else the folder's owner
    token. Raises UsageError for an invalid address.
    """
    folder = data_dir or configured_data_dir()
    given = url or (recorded_url(folder) if data_dir else None) or os.environ.get("POCKETLLM_URL")
    if given and not is_address(given):
        raise UsageError(f"{given} is not the address of a daemon. One looks like {DEFAULT_URL}.")
    address = given or recorded_url(folder) or DEFAULT_URL
    token = os.environ.get("POCKETLLM_TOKEN") or None
    # The owner's token gives access to everything, so a mistyped address must not carry it off the device.
    if token is None and urlsplit(address).hostname in LOOPBACK_HOSTS:
        token = read_text_field(folder / "tokens.json", "owner")
    return Target(url=address.rstrip("/"), token=token, tokens_file=folder / "tokens.json")


def owner_token(data_dir: Path | None) -> str:
    """Return the owner's token of a data folder. Raises CommandError when the folder has none yet."""
    tokens_file = (data_dir or configured_data_dir()) / "tokens.json"
    token = read_text_field(tokens_file, "owner")
    if token is None:
        raise CommandError(
            f"There is no token in {tokens_file} yet. The daemon makes one when it first starts: "
            "run `pocketllm serve`, then ask again."
        )
    return token


def recorded_url(folder: Path) -> str | None:
    """Return the address in the folder's `daemon.json`; None when there is none or it is invalid."""
    url = read_text_field(folder / "daemon.json", "url")
    return url if url and is_address(url) else None


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
        raise CommandError(f"{path} may not be read by this user. Run the command as the daemon's user.") from error
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
