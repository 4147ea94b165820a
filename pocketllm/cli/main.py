"""The `pocketllm` command. This file says which commands there are; what each does is in a module of its name.

Nothing heavy is imported here: a command imports what it needs when it runs, so that `--help` comes at once and the
daemon's process never holds torch or an HTTP client.
"""

import io
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from pocketllm import __version__
from pocketllm.cli.common import Common, DataDir, Program, connected, examples, shared_options, show
from pocketllm.cli.daemon import backup as cli_backup
from pocketllm.cli.daemon import dashboard as cli_dashboard
from pocketllm.cli.daemon import demo as cli_demo
from pocketllm.cli.daemon import doctor as cli_doctor
from pocketllm.cli.daemon import snooze as cli_snooze
from pocketllm.cli.daemon.service import service_app
from pocketllm.cli.daemon.token import token_app
from pocketllm.cli.jobs import plan as cli_plan
from pocketllm.cli.jobs import replay as cli_replay
from pocketllm.cli.jobs import report as cli_report
from pocketllm.cli.jobs import train as cli_train
from pocketllm.cli.jobs.jobs import jobs_app
from pocketllm.cli.models import adapters as cli_adapters
from pocketllm.cli.models import chat as cli_chat
from pocketllm.cli.models import classify as cli_classify
from pocketllm.cli.models import generate as cli_generate
from pocketllm.cli.models import suggest as cli_suggest
from pocketllm.cli.models.adapters import adapters_app
from pocketllm.cli.models.models import models_app
from pocketllm.cli.texts import add as cli_add
from pocketllm.cli.texts import export as cli_export
from pocketllm.cli.texts import import_texts as cli_import
from pocketllm.cli.texts.folders import folders_app
from pocketllm.cli.texts.texts import texts_app
from pocketllm.errors import EXIT_CONFIG, EXIT_ERROR, CommandError
from pocketllm.home import become_owner

#: The panels of `pocketllm --help`. COMMAND_ORDER has their order.
SERVICE = "Service"
MODELS = "Models and adapters"
TEXTS = "Your texts"
TRAINING = "Training"
WRITING = "Writing"
CHECKS = "Checks and backups"

app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    # A traceback with the values of variables would print the owner's words.
    pretty_exceptions_enable=False,
    epilog=examples(
        "pocketllm demo                      try it on sample notes, in a minute or two",
        "pocketllm models add                install the default model",
        "pocketllm serve                     run the daemon",
        "pocketllm import ~/notes",
        "pocketllm train",
        'pocketllm generate "Dear Anna,"',
    ),
)


def show_version(show: bool) -> None:
    """Print the version and exit if --version was given."""
    if show:
        typer.echo(f"pocketllm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train a small language model to write like you, on this device."""


@app.command(
    epilog=examples("pocketllm serve", "pocketllm serve --port 0 --data-dir ./try", "pocketllm serve --model NAME"),
    rich_help_panel=SERVICE,
)
def serve(
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port on this device; 0 picks a free one. Default: 2407.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Installed model to train (see `pocketllm models`).")
    ] = None,
    data_dir: DataDir = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
) -> None:
    """Run the daemon until Ctrl-C. It listens on this device only.

    Options override the environment (POCKETLLM_...), which overrides config.toml.
    """
    from pocketllm.daemon.errors import BadSettings, DaemonError
    from pocketllm.server import serve as run
    from pocketllm.storage.errors import StorageError

    become_owner(data_dir)
    given = {"port": port, "model": model, "data_dir": data_dir, "log_level": log_level}
    try:
        code = run({name: value for name, value in given.items() if value is not None})
    except (DaemonError, StorageError) as error:
        refused = CommandError(str(error))
        refused.exit_code = EXIT_CONFIG if isinstance(error, BadSettings) else EXIT_ERROR
        raise refused from error
    raise typer.Exit(code)


@app.command(epilog=examples("pocketllm status", "pocketllm status --json"), rich_help_panel=SERVICE)
@shared_options
def status(options: Common) -> None:
    """Show what the daemon is doing, whether it can train now, and if not, why."""
    from pocketllm.cli.views import status_panel

    with connected(options) as client:
        document = client.get("status")
    show(options, document, status_panel(document, datetime.now(UTC)))


app.command("demo", epilog=cli_demo.EPILOG, rich_help_panel=SERVICE)(cli_demo.demo)
app.add_typer(service_app, name="service", rich_help_panel=SERVICE)
app.command("dashboard", epilog=cli_dashboard.EPILOG, rich_help_panel=SERVICE)(cli_dashboard.dashboard)
app.command("snooze", epilog=cli_snooze.EPILOG, rich_help_panel=SERVICE)(cli_snooze.snooze)
app.add_typer(token_app, name="token", rich_help_panel=SERVICE)
app.add_typer(models_app, name="models", rich_help_panel=MODELS)
app.add_typer(adapters_app, name="adapters", rich_help_panel=MODELS)
app.command("rollback", epilog=cli_adapters.EPILOG, rich_help_panel=MODELS)(cli_adapters.rollback)
app.command("add", epilog=cli_add.EPILOG, rich_help_panel=TEXTS)(cli_add.add)
app.command("import", epilog=cli_import.EPILOG, rich_help_panel=TEXTS)(cli_import.import_texts)
app.add_typer(folders_app, name="folders", rich_help_panel=TEXTS)
app.add_typer(texts_app, name="texts", rich_help_panel=TEXTS)
app.command("export", epilog=cli_export.EPILOG, rich_help_panel=TEXTS)(cli_export.export)
app.command("plan", epilog=cli_plan.EPILOG, rich_help_panel=TRAINING)(cli_plan.plan)
app.command("train", epilog=cli_train.EPILOG, rich_help_panel=TRAINING)(cli_train.train)
app.add_typer(jobs_app, name="jobs", rich_help_panel=TRAINING)
app.command("report", epilog=cli_report.EPILOG, rich_help_panel=TRAINING)(cli_report.report)
app.command("generate", epilog=cli_generate.EPILOG, rich_help_panel=WRITING)(cli_generate.generate)
app.command("suggest", epilog=cli_suggest.EPILOG, rich_help_panel=WRITING)(cli_suggest.suggest)
app.command("classify", epilog=cli_classify.EPILOG, rich_help_panel=WRITING)(cli_classify.classify)
app.command("chat", epilog=cli_chat.EPILOG, rich_help_panel=WRITING)(cli_chat.chat)
app.command("doctor", epilog=cli_doctor.EPILOG, rich_help_panel=CHECKS)(cli_doctor.doctor)
app.command("backup", epilog=cli_backup.BACKUP_EPILOG, rich_help_panel=CHECKS)(cli_backup.backup)
app.command("restore", epilog=cli_backup.RESTORE_EPILOG, rich_help_panel=CHECKS)(cli_backup.restore)
app.command("verify", epilog=cli_backup.VERIFY_EPILOG, rich_help_panel=CHECKS)(cli_backup.verify)
app.command("replay", epilog=cli_replay.EPILOG, rich_help_panel=CHECKS)(cli_replay.replay)


def main() -> None:
    """Run the command line and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that is not UTF-8 shows a question mark for what it cannot show; that is no reason to fail.
            stream.reconfigure(errors="replace")
    app()
