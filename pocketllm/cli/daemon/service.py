"""`pocketllm service`: install the daemon as a service."""

from typing import Annotated

import typer
from typer.core import TyperGroup

from pocketllm.cli.common import Common, Json, examples, show

System = Annotated[
    bool, typer.Option("--system", help="Use a system unit with its own user. Needs root. Not under Termux.")
]

service_app = typer.Typer(cls=TyperGroup, no_args_is_help=True)


@service_app.callback(epilog=examples("pocketllm service install", "pocketllm service status"))
def service() -> None:
    """Install the daemon as a service that starts at boot: systemd, or runit under Termux."""


@service_app.command("install", epilog=examples("pocketllm service install", "sudo pocketllm service install --system"))
def install(system: System = False, json_wanted: Json = False) -> None:
    """Install the service and start it. Run this again after an update."""
    from pocketllm.service import service_manager

    done = service_manager(system=system).install()
    show(Common(json=json_wanted), {"done": done}, "\n".join(done))


@service_app.command("uninstall", epilog=examples("pocketllm service uninstall"))
def uninstall(system: System = False, json_wanted: Json = False) -> None:
    """Stop and remove the service. Texts, models and adapters stay."""
    from pocketllm.service import service_manager

    done = service_manager(system=system).uninstall()
    show(Common(json=json_wanted), {"done": done}, "\n".join(done))


@service_app.command("status", epilog=examples("pocketllm service status", "pocketllm service status --json"))
def status(system: System = False, json_wanted: Json = False) -> None:
    """Show whether the service is installed and running. Exit code 0: running. 1: not running."""
    from pocketllm.service import service_manager

    state = service_manager(system=system).status()
    said = f"{state['manager']}: {'installed' if state['installed'] else 'not installed'}, {state['message']}"
    show(Common(json=json_wanted), state, "\n  ".join([said, *state["files"]]))
    raise typer.Exit(0 if state["running"] else 1)
