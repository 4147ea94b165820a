"""The routes of the app, and which of them need no token."""

from collections.abc import Iterator
from typing import Any

from starlette.routing import BaseRoute, Route

OPEN = [*(("GET", "/health"), ("GET", "/jobs")), *(("GET", "/"), ("GET", "/dashboard/{name}"))]


def routes(of: list[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Every method and path, included routers' too."""
    for route in of:
        if isinstance(route, Route):
            for method in route.methods or ():
                yield method, route.path_format
        else:
            included: Any = route
            yield from routes(included.original_router.routes)
