"""/metrics: the state of things as numbers over time, for Prometheus and what reads its format. Holds no content."""

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse

from pocketllm.api.dependencies import Context

router = APIRouter(tags=["status"])

#: Prometheus' own; Response would add a charset.
_KIND = "text/plain; version=0.0.4"


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(services: Context) -> PlainTextResponse:
    """Jobs by state, texts, what speaks against learning, what the sensors see, what runs, in Prometheus' format."""
    # Its library takes 2 MB, which nobody who does not ask for metrics shall pay.
    from pocketllm.api.native.prometheus import exposition

    return PlainTextResponse(exposition(services), media_type=_KIND)
