"""Commands about the daemon itself: demo, serve, service, status, dashboard, snooze and token."""

import html
import shutil
import subprocess
import webbrowser
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from pocketllm.api.security.tokens import Scope
from pocketllm.cli.program import Common, Json, Method, connected, emit, given, make_console, program, show
from pocketllm.daemon.paths import write_private
from pocketllm.errors import EXIT_CONFIG, EXIT_ERROR, CommandError, Document, UsageError
from pocketllm.home import become_owner, owner_token

PANEL = "Service"
#: Termux has no browser of its own, and this for Android's.
_TERMUX = "termux-open-url"

System = Annotated[
    bool, typer.Option("--system", help="Use a system unit with its own user. Needs root. Not under Termux.")
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the app.")]


@program.command(
    "pocketllm demo",
    "pocketllm demo --steps 50",
    "pocketllm demo --method mezo",
    "pocketllm demo --data-dir ~/try-pocketllm",
    panel=PANEL,
    shared=False,
)
def demo(
    data_dir: Annotated[
        Path, typer.Option("--data-dir", envvar="POCKETLLM_DEMO_DIR", help="Folder for the demo; created if missing.")
    ] = Path("demo-data"),
    steps: Annotated[int | None, typer.Option(min=1, help="Number of training steps; more take longer.")] = None,
    method: Method = None,
    json_wanted: Json = False,
) -> None:
    """Try PocketLLM: from nothing to a personal model in minutes.

    Installs the default model, starts a daemon of its own, adds sample notes, trains, and shows what changed.

    Stops the daemon at the end and touches nothing outside its folder.
    """
    from pocketllm.cli.demo import run_demo
    from pocketllm.cli.models import install_default

    become_owner(data_dir)
    # With --json, stdout is for the document alone.
    console = make_console(stderr=json_wanted)
    result = run_demo(console, data_dir=data_dir, steps=steps, method=method, install=install_default)
    if json_wanted:
        emit(result)
    if not result["learned"]:
        raise typer.Exit(EXIT_ERROR)


@program.command(
    "pocketllm serve",
    "pocketllm serve --port 0 --data-dir ./try",
    "pocketllm serve --model NAME",
    panel=PANEL,
    without=("url", "json_wanted"),
)
def serve(
    options: Common,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port on this device; 0 picks a free one. Default: 2407.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Installed model to train (see `pocketllm models`).")
    ] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
) -> None:
    """Run the daemon until Ctrl-C. It listens on this device only.

    Options override the environment (POCKETLLM_...), which overrides config.toml.
    """
    from pocketllm.daemon.errors import BadSettings
    from pocketllm.server import serve as run

    try:
        code = run(given(port=port, model=model, data_dir=options.data_dir, log_level=log_level))
    except BadSettings as error:
        refused = CommandError(str(error))
        refused.exit_code = EXIT_CONFIG
        raise refused from error
    raise typer.Exit(code)


@program.group("pocketllm service install", "pocketllm service status", panel=PANEL, shared=False)
def service() -> None:
    """Install the daemon as a service that starts at boot: systemd, or runit under Termux."""


@service.command("pocketllm service install", "sudo pocketllm service install --system", shared=False)
def install(system: System = False, json_wanted: Json = False) -> None:
    """Install the service and start it. Run this again after an update."""
    from pocketllm.service import service_manager

    done = service_manager(system=system).install()
    show(Common(json=json_wanted), {"done": done}, "\n".join(done))


@service.command("pocketllm service uninstall", shared=False)
def uninstall(system: System = False, json_wanted: Json = False) -> None:
    """Stop and remove the service. Texts, models and adapters stay."""
    from pocketllm.service import service_manager

    done = service_manager(system=system).uninstall()
    show(Common(json=json_wanted), {"done": done}, "\n".join(done))


@service.command("pocketllm service status", "pocketllm service status --json", name="status", shared=False)
def service_status(system: System = False, json_wanted: Json = False) -> None:
    """Show whether the service is installed and running. Exit code 0: running. 1: not running."""
    from pocketllm.service import service_manager

    state = service_manager(system=system).status()
    said = f"{state['manager']}: {'installed' if state['installed'] else 'not installed'}, {state['message']}"
    show(Common(json=json_wanted), state, "\n  ".join([said, *state["files"]]))
    raise typer.Exit(0 if state["running"] else 1)


@program.command("pocketllm status", "pocketllm status --json", panel=PANEL)
def status(options: Common) -> None:
    """Show what the daemon is doing, whether it can train now, and if not, why."""
    from pocketllm.cli.job_views import status_panel

    with connected(options) as client:
        document = client.get("status")
    show(options, document, status_panel(document))


@program.command("pocketllm dashboard", "pocketllm dashboard --no-browser", panel=PANEL)
def dashboard(
    options: Common, browser: Annotated[bool, typer.Option(help="Open it, or only print its address.")] = True
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
    if browser and _opened(address, options.folder.root):
        typer.echo(f"Opened in the browser. If nothing appears, open this within {made['seconds']:.0f} s:")
    typer.echo(address)


def _opened(address: str, data_dir: Path) -> bool:
    """Open the address in a browser."""
    if command := shutil.which(_TERMUX):  # Android shows an app's command lines to itself alone
        return subprocess.run([command, address], stdin=subprocess.DEVNULL, check=False).returncode == 0
    # Every user of a Linux machine can read command lines: the browser gets the name of a file that only its owner can.
    try:
        page = data_dir.resolve() / "sign-in.html"
        refresh = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={html.escape(address)}">\n'
        write_private(page, refresh.encode())
    except OSError:  # another user's daemon
        return False
    return webbrowser.open(page.as_uri())


@program.command("pocketllm snooze 90", "pocketllm snooze --off", panel=PANEL)
def snooze(
    options: Common,
    minutes: Annotated[float | None, typer.Argument(metavar="[MINUTES]", help="Length of the snooze.")] = None,
    off: Annotated[bool, typer.Option("--off", help="End the snooze.")] = False,
) -> None:
    """Run no job for a while. A running job pauses at once and keeps its progress."""
    if off == (minutes is not None):
        raise UsageError("Give the number of minutes, or --off.")
    body = given(minutes=minutes)
    with connected(options) as client:
        document = client.post("status", "snooze", body=body)
    sentence = "Jobs run again when the conditions allow it."
    if until := document["snoozed_until"]:
        sentence = f"No job runs until {datetime.fromisoformat(until).astimezone():%a %d %b %H:%M}."
    show(options, document, sentence)


@program.group(
    "pocketllm token", "TOKEN=$(pocketllm token)", "pocketllm token create notes --scope ingest", panel=PANEL
)
def token(options: Common) -> None:
    """Print the owner's access token, or manage the access tokens of apps.

    Without a command, prints the owner's token, which has every scope.
    """
    _show_token(options, {"token": owner_token(options.data_dir)})


def _show_token(options: Common, document: Document) -> None:
    emit(document) if options.json else typer.echo(document["token"])


@token.command(
    "pocketllm token create notes --scope ingest",
    "pocketllm token create keyboard --scope generate",
    "pocketllm token create widget --scope monitor",
    "TOKEN=$(pocketllm token create notes --scope ingest)",
)
def create(
    options: Common,
    name: Name,
    scope: Annotated[
        list[Scope], typer.Option(help=f"{', '.join(Scope)}; can be repeated. docs/security.md explains each.")
    ],
) -> None:
    """Create an access token for an app and print it. Only its hash is stored, so it cannot be shown again."""
    with connected(options) as client:
        _show_token(options, client.post("tokens", body={"name": name, "scopes": scope}))


@token.command("pocketllm token list", "pocketllm token list --json", name="list")
def list_tokens(options: Common) -> None:
    """List the apps with access tokens, and their scopes."""
    from pocketllm.cli.views import table

    with connected(options) as client:
        found = client.get("tokens")
    empty = "No app has an access token. `pocketllm token create NAME --scope ingest` lets an app add texts."
    show(options, found, table(found["data"], ("name", "scopes", "created_at"), empty=empty))


@token.command("pocketllm token revoke notes")
def revoke(options: Common, name: Name) -> None:
    """Revoke an app's access token."""
    with connected(options) as client:
        client.delete("tokens", name)
    show(options, {"revoked": name}, f"Revoked {name}'s token.")
