"""`pocketllm dashboard`: opens the dashboard, signed in."""

import shutil
import subprocess
import webbrowser
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, shared_options

EPILOG = examples("pocketllm dashboard", "pocketllm dashboard --no-browser")

#: Termux has no browser of its own, and this for Android's.
_TERMUX = "termux-open-url"


@shared_options
def dashboard(
    options: Common,
    browser: Annotated[bool, typer.Option(help="Open it, or only print where it is.")] = True,
) -> None:
    """Open the daemon's page in a browser, signed in.

    The address holds a code that is good once and for two minutes: in the browser's history it is worth nothing.
    """
    with connected(options) as client:
        made = client.begin_session()
        address = f"{client.target.url}/#code={made['code']}"
    if options.json:
        emit({"url": address, "seconds": made["seconds"]})
        return
    if browser and _opened(address):
        typer.echo(f"Opened in the browser. If nothing shows, open this within {made['seconds']:.0f} s:")
    typer.echo(address)


def _opened(address: str) -> bool:
    if command := shutil.which(_TERMUX):
        return subprocess.run([command, address], stdin=subprocess.DEVNULL, check=False).returncode == 0
    return webbrowser.open(address)
