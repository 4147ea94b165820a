"""What all JSON bodies have in common: what is refused before anything is done with it."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

#: No request has as many fields.
MAX_FIELDS = 100
#: The largest integer that every JSON parser reads exactly.
MAX_SEED = 2**53 - 1


class Body(BaseModel):
    """A body or a part of one.

    Refused are values of another type than the schema's (a boolean or a string as a number), infinite numbers, text
    that is no Unicode, and fields by the thousand.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _sound(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if len(values) > MAX_FIELDS:
            raise ValueError(f"it has {len(values):,} fields; the most are {MAX_FIELDS}")
        # To JSON, 1.0 is an integer.
        values = {
            name: int(value) if isinstance(value, float) and value.is_integer() else value
            for name, value in values.items()
        }
        for name, text in _texts(values):
            if not _is_unicode(text):
                raise ValueError(f"{ascii(name)[1:-1][:60]} contains half of a surrogate pair, which is no character")
        return values


def _texts(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The names of a model's own fields and the strings in them; other models look at theirs."""
    for name, value in values.items():
        yield name, name
        yield from ((name, one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
