"""/metrics in Prometheus' format. Contains no text."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from pocketllm.api.dependencies import ServicesDep

router = APIRouter(tags=["status"])

#: Prometheus' own; Response would add a charset.
_KIND = "text/plain; version=0.0.4"


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(services: ServicesDep) -> PlainTextResponse:
    """Return jobs by state, texts, blockers, readings and processes in Prometheus format."""
    # Imported here, since the library takes 2 MB.
    from pocketllm.api.native.prometheus import exposition

    return PlainTextResponse(exposition(services), media_type=_KIND)
