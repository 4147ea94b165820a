"""`pocketllm dashboard`: opens the dashboard, signed in."""

import html
import shutil
import subprocess
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, shared_options
from pocketllm.daemon.paths import write_private
from pocketllm.home import configured_data_dir

EPILOG = examples("pocketllm dashboard", "pocketllm dashboard --no-browser")

#: Termux has no browser of its own, and this for Android's.
_TERMUX = "termux-open-url"


@shared_options
def dashboard(
    options: Common,
    browser: Annotated[bool, typer.Option(help="Open it, or only print its address.")] = True,
) -> None:
    """Open the dashboard in a browser, signed in.

    The address contains a code that works once, within two minutes, so it is useless in the browser's history.
    """
    with connected(options) as client:
        made = client.post("sessions")
        address = f"{client.target.url}/#code={made['code']}"
    if options.json:
        emit({"url": address, "seconds": made["seconds"]})
        return
    if browser and _opened(address, options.data_dir or configured_data_dir()):
        typer.echo(f"Opened in the browser. If nothing appears, open this within {made['seconds']:.0f} s:")
    typer.echo(address)


def _opened(address: str, data_dir: Path) -> bool:
    """Open the address in a browser."""
    if command := shutil.which(_TERMUX):  # Android shows an app's command lines to itself alone
        return subprocess.run([command, address], stdin=subprocess.DEVNULL, check=False).returncode == 0
    # Every user of a Linux machine can read command lines: the browser gets the name of a file that only its owner can.
    try:
        page = data_dir / "sign-in.html"
        refresh = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={html.escape(address)}">\n'
        write_private(page, refresh.encode())
    except OSError:  # another user's daemon
        return False
    return webbrowser.open(page.as_uri())
