"""`pocketllm token`: the owner's token, and tokens of apps."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.api.security.tokens import Scope
from pocketllm.cli.common import Common, connected, emit, examples, shared_options, show
from pocketllm.errors import Document
from pocketllm.home import owner_token

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

token_app = typer.Typer(invoke_without_command=True)


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the app.")]


@token_app.callback(
    epilog=examples("pocketllm token", "TOKEN=$(pocketllm token)", "pocketllm token create notes --scope ingest")
)
@shared_options
def token(options: Common, ctx: typer.Context) -> None:
    """Print the owner's access token, or manage the access tokens of apps.

    Without a command, prints the owner's token, which has every scope.
    """
    if ctx.invoked_subcommand is not None:
        return
    found = owner_token(options.data_dir)
    if options.json:
        emit({"token": found})
    else:
        typer.echo(found)


@token_app.command(
    "create",
    epilog=examples(
        "pocketllm token create notes --scope ingest",
        "pocketllm token create keyboard --scope generate",
        "pocketllm token create widget --scope monitor",
        "TOKEN=$(pocketllm token create notes --scope ingest)",
    ),
)
@shared_options
def create(
    options: Common,
    name: Name,
    scope: Annotated[
        list[Scope],
        typer.Option(help=f"{', '.join(Scope)}; can be repeated. docs/security.md explains each."),
    ],
) -> None:
    """Create an access token for an app and print it. Only its hash is stored, so it cannot be shown again."""
    with connected(options) as client:
        made = client.post("tokens", body={"name": name, "scopes": scope})
    if options.json:
        emit(made)
    else:
        typer.echo(made["token"])


@token_app.command("list", epilog=examples("pocketllm token list", "pocketllm token list --json"))
@shared_options
def list_tokens(options: Common) -> None:
    """List the apps with access tokens, and their scopes."""
    with connected(options) as client:
        found = client.get("tokens")
    show(options, found, _tokens_table(found["data"]))


def _tokens_table(tokens: Sequence[Document]) -> "Table | Text":
    from rich.table import Table
    from rich.text import Text

    from pocketllm.cli.views import printable

    if not tokens:
        return Text("No app has an access token. `pocketllm token create NAME --scope ingest` lets an app add texts.")
    table = Table("App", "Scopes", "Created", box=None, pad_edge=False, header_style="bold")
    for token in tokens:
        since = datetime.fromisoformat(token["created_at"]).astimezone()
        table.add_row(Text(printable(token["name"])), ", ".join(token["scopes"]), f"{since:%d %b %Y %H:%M}")
    return table


@token_app.command("revoke", epilog=examples("pocketllm token revoke notes"))
@shared_options
def revoke(options: Common, name: Name) -> None:
    """Revoke an app's access token."""
    with connected(options) as client:
        client.delete("tokens", name)
    show(options, {"revoked": name}, f"Revoked {name}'s token.")
