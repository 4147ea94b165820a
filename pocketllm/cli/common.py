"""What the commands share: options, consoles, and the conversion of errors to exit codes."""

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate

import typer
from typer.core import TyperGroup

from pocketllm.errors import CommandError, Interrupted, UsageError
from pocketllm.home import become_owner, find_target

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from pocketllm.client import Client

# The environment is read in `home` and not by typer, which could not tell `jobs --url A list` from a variable.
Url = Annotated[
    str | None,
    typer.Option("--url", help="The daemon's address (or POCKETLLM_URL); found automatically on this device."),
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="The daemon's data folder (or POCKETLLM_DATA_DIR)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for scripts.")]

#: A line for each panel of `pocketllm --help`.
COMMAND_ORDER = [
    *("demo", "serve", "service", "status", "dashboard", "snooze", "token"),
    *("models", "adapters", "rollback"),
    *("add", "import", "folders", "texts", "export"),
    *("plan", "train", "jobs", "report"),
    *("generate", "suggest", "classify", "chat"),
    *("doctor", "backup", "restore", "verify", "replay"),
]
#: Their errors are sentences for people.
OWN_ERRORS = ("pocketllm.daemon.errors", "pocketllm.engine.errors", "pocketllm.storage.errors")
JSON_WANTED = "pocketllm.json"
PIPE_COLUMNS = 160  # for a file or a pipe, where rich would cut tables at 80


@dataclass(frozen=True, kw_only=True)
class Common:
    """The options that every command with an answer has."""

    url: str | None = None
    data_dir: Path | None = None
    json: bool = False


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


def shared_options(command: Callable[Concatenate[Common, ...], None]) -> Callable[..., None]:
    """Decorate a command that asks the daemon: typer sees the options of `common` behind the command's own."""
    return _with_options(command, ("ctx", "url", "data_dir", "json_wanted"))


def local_options(command: Callable[Concatenate[Common, ...], None]) -> Callable[..., None]:
    """The same for a command that reads the data folder itself, and so has no --url."""
    return _with_options(command, ("ctx", "data_dir", "json_wanted"))


def _with_options(command: Callable[Concatenate[Common, ...], None], names: tuple[str, ...]) -> Callable[..., None]:
    own = list(signature(command, eval_str=True).parameters.values())[1:]
    shared = [signature(common, eval_str=True).parameters[name] for name in names]

    @wraps(command)
    def run(**given: Any) -> None:
        options = common(**{parameter.name: given[parameter.name] for parameter in shared})
        command(options, **{parameter.name: given[parameter.name] for parameter in own})

    by_name = {parameter.name: parameter for parameter in [*own, *shared]}
    keywords = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in by_name.values()]
    run.__signature__ = Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return run


class Program(TyperGroup):
    """The root command: turns expected errors into one sentence (or one problem document) and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands in the order in which a newcomer meets them."""
        return sorted(super().list_commands(ctx), key=COMMAND_ORDER.index)

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


def examples(*lines: str) -> str:
    """Return the examples at the end of a command's help."""
    return "Examples:\n" + "\n".join(f"  $ {line}" for line in lines)
