"""/tokens: tokens of apps."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, Field

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import ServicesDep
from pocketllm.api.native.schemas import Data
from pocketllm.api.security.tokens import Credentials, Scope
from pocketllm.daemon.documents import Body

router = APIRouter(tags=["tokens"], route_class=JSONRoute)

#: A name that can stand in a path and in a shell.
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class TokenIn(Body, json_schema_extra={"example": {"name": "notes", "scopes": ["ingest"]}}):
    """A new access token."""

    name: str = Field(pattern=_NAME, description="Lower-case letters, digits, dots, dashes and underscores.")
    scopes: list[Annotated[Scope, Field(strict=False)]] = Field(
        min_length=1, description="docs/security.md describes each scope."
    )


class TokenOut(BaseModel):
    """An app that has an access token."""

    name: str
    scopes: list[Scope]
    created_at: datetime


class NewTokenOut(TokenOut):
    """An app with its new access token, which is shown only once."""

    token: str


def credentials_of(request: Request) -> Credentials:
    """The credentials that the app was made with."""
    credentials = request.app.state.credentials
    assert isinstance(credentials, Credentials)
    return credentials


CredentialsDep = Annotated[Credentials, Depends(credentials_of)]


@router.get("/tokens")
def list_tokens(credentials: CredentialsDep) -> Data[TokenOut]:
    """List the apps that have an access token, by name. The owner's token is not listed."""
    return Data[TokenOut](data=[TokenOut.model_validate(row, from_attributes=True) for row in credentials.all()])


@router.post("/tokens", status_code=HTTPStatus.CREATED)
def create_token(credentials: CredentialsDep, services: ServicesDep, body: TokenIn) -> NewTokenOut:
    """Create an access token for an app. Only this response contains it: the daemon stores a digest."""
    now, scopes = services.now(), sorted(set(body.scopes))
    token = credentials.create(body.name, scopes, now)
    return NewTokenOut(name=body.name, scopes=scopes, created_at=now, token=token)


@router.delete("/tokens/{name}", status_code=HTTPStatus.NO_CONTENT)
def revoke_token(
    credentials: CredentialsDep, name: Annotated[str, Path(description="The name that GET /tokens lists.")]
) -> None:
    """Revoke an app's access token."""
    credentials.revoke(name)
