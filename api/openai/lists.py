"""Lists as OpenAI's clients page through them: while `has_more` is true they ask again, `after` the last id."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel

from pocketllm.api.native.schemas.jobs import Identified
from pocketllm.storage.errors import NotFound

Item = TypeVar("Item", bound=Identified)


class Listing(BaseModel, Generic[Item]):
    """A part of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: Sequence[Item], *, has_more: bool) -> "Listing[Item]":
        """From what is in it."""
        first, last = (items[0].id, items[-1].id) if items else (None, None)
        return cls(data=list(items), first_id=first, last_id=last, has_more=has_more)


def page_of(items: Sequence[Item], *, after: str | None, limit: int) -> Listing[Item]:
    """A part of a whole list, from behind the item `after`. Raises NotFound where there is none with that id."""
    ids = [item.id for item in items]
    if after is not None and after not in ids:
        raise NotFound(f"There is no {after!r} in this list. Ask again without `after`.")
    start = 0 if after is None else ids.index(after) + 1
    return Listing.of(items[start : start + limit], has_more=start + limit < len(items))
