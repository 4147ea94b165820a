"""Response formats: indented JSON, which is readable with plain curl, and server-sent events."""

import json
from typing import Any

from fastapi.responses import JSONResponse


class PrettyJSONResponse(JSONResponse):
    """JSON, indented, with a newline at the end."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


class ProblemResponse(PrettyJSONResponse):
    """An error by RFC 9457."""

    media_type = "application/problem+json"


def server_sent_event(name: str, data: Any) -> bytes:
    """One event of a text/event-stream."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
