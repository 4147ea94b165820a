"""What the commands share: the program and its groups, options, consoles, and errors as exit codes."""

import errno
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from pocketllm.daemon.paths import DataFolder, is_there
from pocketllm.errors import CommandError, Document, Interrupted, UsageError
from pocketllm.home import become_owner, configured_data_dir, find_target, running_settings

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pocketllm.client import Client
    from pocketllm.daemon.settings import Settings
    from pocketllm.storage.store import Store


# The environment is read in `home` and not by typer, which could not tell `jobs --url A list` from a variable.
Url = Annotated[
    str | None,
    typer.Option("--url", help="The daemon's address (or POCKETLLM_URL); found automatically on this device."),
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="The daemon's data folder (or POCKETLLM_DATA_DIR).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]
Method = Annotated[
    Literal["auto", "exact", "mezo"] | None,
    typer.Option(
        help="exact: gradients, one layer at a time; mezo: forward passes only; auto: exact if it fits in memory."
    ),
]
Command = Callable[..., None]

#: Their errors are sentences for people.
OWN_ERRORS = ("pocketllm.daemon.errors", "pocketllm.engine.errors", "pocketllm.storage.errors")
JSON_WANTED = "pocketllm.json"
PIPE_COLUMNS = 160  # for a file or a pipe, where rich would cut tables at 80
PLAIN_LINE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that every command with an answer has."""

    url: str | None = None
    data_dir: Path | None = None
    json: bool = False

    @property
    def folder(self) -> DataFolder:
        """The data folder."""
        return DataFolder(self.data_dir or configured_data_dir())


def common(ctx: typer.Context, url: Url = None, data_dir: DataDir = None, json_wanted: Json = False) -> Common:
    """Return a command's options, filled up with those given to its group (`jobs --json show ID`).

    They are kept in the context, where the group's commands find them.
    """
    outer = ctx.obj if isinstance(ctx.obj, Common) else Common()
    options = Common(url=url or outer.url, data_dir=data_dir or outer.data_dir, json=json_wanted or outer.json)
    ctx.obj = options
    if ctx.invoked_subcommand is None:
        become_owner(options.data_dir)
    return options


def _with_options(command: Command, without: tuple[str, ...]) -> Command:
    """The command as typer sees it: with the options of `common` behind its own, but for some."""
    own = list(signature(command, eval_str=True).parameters.values())[1:]
    shared = [one for one in signature(common, eval_str=True).parameters.values() if one.name not in without]

    @wraps(command)
    def run(**values: Any) -> None:
        options = common(**{parameter.name: values[parameter.name] for parameter in shared})
        if values["ctx"].invoked_subcommand is None:  # else it is of a group one of whose commands follows
            command(options, **{parameter.name: values[parameter.name] for parameter in own})

    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in [*own, *shared]]
    run.__signature__ = Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return run


class Commands:
    """The commands of the program, or of a group such as `jobs`.

    A decorated function takes the shared options first (see Common). without: names of those that it does not have.
    shared: False if it has none of them and takes what it declares. lines: examples for its help.
    """

    def __init__(self, app: typer.Typer) -> None:
        self.app = app
        self.names: list[str] = []  # in the order of the help

    def command(
        self,
        *lines: str,
        name: str | None = None,
        panel: str | None = None,
        without: tuple[str, ...] = (),
        shared: bool = True,
    ) -> Callable[[Command], Command]:
        """Add a command. panel: where the help lists it."""

        def add(command: Command) -> Command:
            made = self.app.command(name, epilog=examples(*lines), rich_help_panel=panel)
            made(_with_options(command, without) if shared else command)
            self.names.append(name or command.__name__)
            return command

        return add

    def group(
        self,
        *lines: str,
        panel: str,
        without: tuple[str, ...] = (),
        shared: bool = True,
        cls: type[TyperGroup] = TyperGroup,
    ) -> Callable[[Command], "Commands"]:
        """Add a group. The decorated function runs where no command of the group is given; else the help is shown."""

        def add(callback: Command) -> "Commands":
            made = typer.Typer(cls=cls, invoke_without_command=shared, no_args_is_help=not shared)
            made.callback(epilog=examples(*lines))(_with_options(callback, without) if shared else callback)
            self.app.add_typer(made, name=callback.__name__, rich_help_panel=panel)
            self.names.append(callback.__name__)
            return Commands(made)

        return add


class Program(TyperGroup):
    """The root command: turns expected errors into one sentence (or one problem document) and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order in which a newcomer meets them."""
        return sorted(super().list_commands(ctx), key=program.names.index)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Note whether --json was given: an error may occur before the command has parsed its own options."""
        own = args[: args.index("--")] if "--" in args else args
        ctx.meta[JSON_WANTED] = "--json" in own
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        json_wanted = ctx.meta[JSON_WANTED]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            error: CommandError = Interrupted()
        except CommandError as caught:
            error = caught
        except OSError as caught:
            if caught.errno == errno.EPIPE:  # the reader of our pipe is gone; typer ends quietly
                raise
            user = os.environ.get("LOGNAME", os.geteuid())
            advice = f" The command runs as {user}: choose a file that this user can access."
            said = f"{caught.filename}: {caught.strerror}." if caught.filename else str(caught)
            error = CommandError(said + advice * isinstance(caught, PermissionError))
        except Exception as caught:
            if any(kind.__module__ in OWN_ERRORS for kind in type(caught).__mro__):
                error = CommandError(str(caught))
            # A usage error of typer's, whose base class is not public in all supported versions.
            elif not json_wanted or not hasattr(caught, "format_message"):
                raise
            else:
                error = UsageError(caught.format_message())
        report(error, json_wanted=json_wanted)
        raise typer.Exit(error.exit_code)


class ShowByDefault(TyperGroup):
    """A group in which `group WORD` means `group show WORD` when WORD is no command of the group."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command that the arguments name."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


def examples(*lines: str) -> str:
    """Return the examples at the end of a command's help."""
    return "Examples:\n" + "\n".join(f"  $ {line}" for line in lines)


program = Commands(
    typer.Typer(
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
)


def given(**fields: Any) -> Document:
    """Return the fields that are not None: what was not given is left to the daemon and its settings.

    Raises UsageError for infinity and NaN, which JSON does not have.
    """
    for name, value in fields.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} must be a number, not {value}.")
    return {name: value for name, value in fields.items() if value is not None}


def report(error: CommandError, *, json_wanted: bool) -> None:
    """Write an error to stderr, for people or as a problem document."""
    if json_wanted:
        sys.stderr.write(json_text(error.problem(), sys.stderr.encoding))
        return
    from rich.text import Text

    message = Text.assemble((error.label, "bold red"), str(error))
    make_console(stderr=True).print(message, soft_wrap=True)


def show(options: Common, document: object, view: "RenderableType", *, soft_wrap: bool = False) -> None:
    """Print a command's answer: with --json the document, else the view of it; a sentence is not broken into lines."""
    if options.json:
        emit(document)
    else:
        make_console().print(view, soft_wrap=soft_wrap or isinstance(view, str))


def emit(document: object) -> None:
    """Write the one JSON document of a --json command to stdout."""
    sys.stdout.write(json_text(document, sys.stdout.encoding))
    sys.stdout.flush()


def json_text(document: object, encoding: str | None) -> str:
    """Return a document as JSON text in characters that the encoding has."""
    unicode = (encoding or "").lower().startswith("utf")
    return json.dumps(document, indent=2, ensure_ascii=not unicode) + "\n"


def make_console(*, stderr: bool = False) -> "Console":
    """Return a rich console that prints strings unchanged: no markup, no emoji codes, no highlighting."""
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    return console


@contextmanager
def connected(options: Common) -> "Iterator[Client]":
    """Yield a client of the daemon that the options point at."""
    from pocketllm.client import Client

    with Client(find_target(options.url, options.data_dir)) as client:
        yield client


#: Is told the stage of some work, a line about it, how much is done, and of how much.
Report = Callable[[str, str, int, int | None], None]


@contextmanager
def progress(
    console: "Console", *, plain: bool = True, clock: Callable[[], float] = time.monotonic
) -> Iterator[Report]:
    """Yield a function that shows how far some work is: a moving bar on a terminal, else plain lines.

    A plain line is printed at each new stage, and every few seconds if it has changed; without `plain` none is.
    """
    if console.is_terminal:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        from pocketllm.cli.views import printable

        text = TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold"))
        with Progress(SpinnerColumn(), BarColumn(bar_width=20), text, console=console, transient=True) as bars:
            task = bars.add_task("", total=None)
            yield lambda stage, line, done, total: bars.update(
                task, description=printable(line), completed=done, total=total
            )
        return
    last_stage, last_line, next_at = "", "", clock() + PLAIN_LINE_SECONDS

    def print_line(stage: str, line: str, done: int, total: int | None) -> None:
        nonlocal last_stage, last_line, next_at
        if stage != last_stage or (clock() >= next_at and line != last_line):
            console.print(line)
            last_stage, last_line, next_at = stage, line, clock() + PLAIN_LINE_SECONDS

    yield print_line if plain else lambda *_: None


def daemon_settings(options: Common, **changed: Any) -> "Settings":
    """Return the settings of the daemon that runs on the data folder, or those with which it would start.

    changed: settings that stand above both, but for None.
    """
    from pocketllm.daemon.settings import load_settings

    running = running_settings(options.folder.root) or {}
    return load_settings(running | given(data_dir=options.data_dir, **changed))


def check_database(folder: DataFolder) -> None:
    """Raise CommandError when there is no database in a data folder."""
    if not is_there(folder.database) or not folder.database.is_file():
        raise CommandError(f"There is no database {folder.database}. Give the daemon's data folder with --data-dir.")


@contextmanager
def stored(folder: DataFolder) -> "Iterator[Store]":
    """Yield the store of a data folder, without a daemon. Nothing is migrated and no row changes.

    Raises CommandError when there is no database or it is of another version.
    """
    from pocketllm.storage.store import Store

    check_database(folder)
    with closing(Store.open_unchecked(folder.database)) as store:
        yield store


def check_target(path: Path, *, force: bool) -> None:
    """Check that a file can be written, before any work is done. Raises CommandError."""
    if path.is_dir():
        raise CommandError(f"{path} is a folder. Give a file name.")
    if not is_there(path.parent) or not path.parent.is_dir():
        raise CommandError(f"There is no folder {path.parent}. Create it first.")
    if (is_there(path) or path.is_symlink()) and not force:
        raise CommandError(f"{path} already exists. Give another name, or replace it with --force.")
