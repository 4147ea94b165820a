"""What routes are handed: the daemon's parts."""

from typing import Annotated

from fastapi import Depends, Request

from pocketllm.daemon.services import Services


def services_of(request: Request) -> Services:
    """The services that the app was made with."""
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


Context = Annotated[Services, Depends(services_of)]
