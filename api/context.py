"""What routes are handed: the daemon's parts."""

from typing import Annotated

from fastapi import Depends, Request

from pocketllm.daemon.services import Services


async def services_of(request: Request) -> Services:
    """The services that the app was made with."""
    # Nothing here waits; but what is not async would go through a thread and back, at every request.
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Context = Annotated[Services, Depends(services_of)]
