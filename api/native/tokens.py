"""/tokens: which apps are let in, and to what."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request
from pydantic import BaseModel, ConfigDict, Field

from pocketllm.api.dependencies import Context, json_only
from pocketllm.api.security.tokens import Credentials, Scope

router = APIRouter(tags=["tokens"])

#: A name that can stand in a path and in a shell.
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class TokenIn(BaseModel):
    """An app that is to be let in."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"name": "notes", "scopes": ["ingest"]}})

    name: str = Field(pattern=_NAME, description="Small letters, digits, dots, dashes and underscores.")
    scopes: list[Scope] = Field(
        min_length=1, description="ingest: hand over text. generate: ask the model. admin: all."
    )


class TokenOut(BaseModel):
    """An app that is let in."""

    name: str
    scopes: list[Scope]
    created_at: datetime


class NewTokenOut(TokenOut):
    """The same with its token, which is told this once."""

    token: str


class TokensOut(BaseModel):
    """All apps that are let in."""

    data: list[TokenOut]


def credentials_of(request: Request) -> Credentials:
    """The credentials that the app was made with."""
    credentials = request.app.state.credentials
    assert isinstance(credentials, Credentials)
    return credentials


Keys = Annotated[Credentials, Depends(credentials_of)]


@router.get("/tokens")
def list_tokens(credentials: Keys) -> TokensOut:
    """The apps that have a token of their own, by name. The owner's is not among them."""
    return TokensOut(data=[TokenOut.model_validate(token, from_attributes=True) for token in credentials.all()])


@router.post("/tokens", status_code=HTTPStatus.CREATED, dependencies=[Depends(json_only)])
def create_token(credentials: Keys, services: Context, body: TokenIn) -> NewTokenOut:
    """Let an app in. Its token is in this answer and nowhere else: what is kept cannot be turned back into it."""
    now, scopes = services.now(), sorted(set(body.scopes))
    token = credentials.create(body.name, scopes, now)
    return NewTokenOut(name=body.name, scopes=scopes, created_at=now, token=token)


@router.delete("/tokens/{name}", status_code=HTTPStatus.NO_CONTENT)
def revoke_token(credentials: Keys, name: Annotated[str, Path(description="As GET /tokens gives it.")]) -> None:
    """Let an app in no more, from the next request on."""
    credentials.revoke(name)
