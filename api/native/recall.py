"""Recall: what the owner has written about the matter before, put before what the model reads."""

from collections.abc import Sequence
from http import HTTPStatus

from fastapi import Request
from pydantic import BaseModel, Field

from pocketllm.api.errors import Problem
from pocketllm.api.security.tokens import Scope
from pocketllm.daemon.services import Services
from pocketllm.storage.repositories.passages import Passage

#: How many passages are put before a prompt.
PASSAGES = 3


class RecalledOut(BaseModel):
    """A passage from your texts."""

    text_id: str = Field(description="The text that contains the passage.")
    passage: str


def recall(request: Request, services: Services, query: str) -> list[Passage]:
    """The passages that fit best, the best first. Raises Problem for who may not read texts."""
    # Even of an app's own texts, the order tells which words others have used.
    if not request.state.scopes & {Scope.RECALL, Scope.ADMIN}:
        detail = "context: recall requires the scope recall. Put the text for the model to read into the prompt."
        raise Problem(HTTPStatus.FORBIDDEN, detail, param="context", code="out_of_scope")
    return services.store.passages.search(query, limit=PASSAGES)


def described(passages: Sequence[Passage]) -> list[dict[str, str]]:
    """The passages as an answer names them."""
    return [RecalledOut(text_id=one.text.id, passage=one.words).model_dump() for one in passages]


def front(passages: Sequence[str]) -> str:
    """What stands before a prompt: the passages, the best the nearest to it."""
    return "".join(f"{passage}\n\n" for passage in reversed(passages))


def before_question(passages: Sequence[Passage], messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """The chat with the passages in its last message, before what that says."""
    *before, last = messages
    if not passages:
        return [*messages]
    notes = front([one.words for one in passages])
    return [*before, last | {"content": f"From my notes:\n\n{notes}{last['content']}"}]
