"""`pocketllm service`: install the daemon as a service."""

from dataclasses import asdict
from typing import Annotated

import typer
from typer.core import TyperGroup

from pocketllm.cli.common import Json, emit, examples, make_console

System = Annotated[
    bool, typer.Option("--system", help="A system unit with a user of its own; takes root. Not under Termux.")
]

service_app = typer.Typer(cls=TyperGroup, no_args_is_help=True)


@service_app.callback(epilog=examples("pocketllm service install", "pocketllm service status"))
def service() -> None:
    """Install the daemon as a service that starts at boot: systemd, or runit under Termux."""


@service_app.command("install", epilog=examples("pocketllm service install", "sudo pocketllm service install --system"))
def install(system: System = False, json_wanted: Json = False) -> None:
    """Install the service and start it. Run it again after an update."""
    from pocketllm.service import service_manager

    _say(service_manager(system=system).install(), json_wanted)


@service_app.command("uninstall", epilog=examples("pocketllm service uninstall"))
def uninstall(system: System = False, json_wanted: Json = False) -> None:
    """Stop and remove the service. Texts, models and adapters stay."""
    from pocketllm.service import service_manager

    _say(service_manager(system=system).uninstall(), json_wanted)


@service_app.command("status", epilog=examples("pocketllm service status", "pocketllm service status --json"))
def status(system: System = False, json_wanted: Json = False) -> None:
    """Show whether the service is installed and runs. The exit code is 0 when it runs."""
    from pocketllm.service import service_manager

    state = service_manager(system=system).status()
    if json_wanted:
        emit(asdict(state))
    else:
        console = make_console()
        console.print(f"{state.manager}: {'installed' if state.installed else 'not installed'}, {state.message}")
        for file in state.files:
            console.print(f"  {file}")
    raise typer.Exit(0 if state.running else 1)


def _say(done: list[str], json_wanted: bool) -> None:
    if json_wanted:
        emit({"done": done})
        return
    console = make_console()
    for sentence in done:
        console.print(sentence)
