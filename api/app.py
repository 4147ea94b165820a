"""The web application: routes, guard and errors put together."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.formparsers import MultiPartParser
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from pocketllm.api import errors as problems
from pocketllm.api.dashboard import page as dashboard
from pocketllm.api.dependencies import NO_TOKEN, needs
from pocketllm.api.native import adapters, classify, generate, jobs, status, suggest, texts, tokens
from pocketllm.api.native.ingest import Ingest, ReadPriorityMiddleware
from pocketllm.api.openai import completions as openai_completions
from pocketllm.api.openai import files as openai_files
from pocketllm.api.openai import fine_tuning
from pocketllm.api.openai import models as openai_models
from pocketllm.api.responses import PrettyJSONResponse
from pocketllm.api.security.guard import OPEN_ROUTE, Guard, Rate, pattern_of
from pocketllm.api.security.sessions import Sessions
from pocketllm.api.security.tokens import Credentials, Scope
from pocketllm.daemon.services import Services
from pocketllm.daemon.settings import Settings

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(services: Services, *, token: str, lifespan: Lifespan | None = None) -> FastAPI:
    """The daemon's HTTP interface. token: the owner's."""
    app = FastAPI(
        title="PocketLLM",
        version=version("pocketllm"),
        description="A small language model that learns to write like you, on your device.",
        default_response_class=PrettyJSONResponse,
        lifespan=lifespan,
        # The documentation pages would load scripts from a CDN; /openapi.json needs a token.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=problems.PROBLEM_RESPONSES,
    )
    app.state.services = services
    app.state.sessions = sessions = Sessions(services.folder.sessions, services.now)
    app.state.credentials = credentials = Credentials(token, services.store.tokens, sessions)
    app.state.ingest = ingest = Ingest(services.store.texts, services.now)
    for module in (
        *(dashboard, status, texts, jobs, adapters, generate, suggest, classify, tokens),
        *(openai_models, openai_completions, openai_files, fine_tuning),
    ):
        app.include_router(module.router)
    problems.install(app)
    settings = services.settings
    _document(app, settings)
    # An upload is not written to a temporary file, where its bytes would outlive it.
    MultiPartParser.spool_max_size = settings.max_body_bytes
    # Inside of the guard and of the error handlers, so that its error has the common shape.
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(ReadPriorityMiddleware, ingest=ingest)
    origins = pattern_of(settings.allowed_origins)
    app.add_middleware(
        Guard,
        routes=app.routes,
        credentials=credentials,
        rate=Rate(settings.app_requests_per_second, lambda: services.now().timestamp()),
        max_body_bytes=settings.max_body_bytes,
        max_requests=settings.max_requests,
        open_routes=settings.open_routes,
        origins=origins,
    )
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=origins.pattern,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],  # OpenAI's clients send more of them with each version
        expose_headers=["Retry-After", "X-Should-Retry", "Location"],
    )
    return app


def _document(app: FastAPI, settings: Settings) -> None:
    """Let /openapi.json say what FastAPI does not know: the kinds of text, and what the guard does by default."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = generate()
            schema["components"]["schemas"] |= texts.KINDS["$defs"]
            token = {"type": "http", "scheme": "bearer", "description": "`pocketllm token` prints the owner's token."}
            schema["components"]["securitySchemes"] = {"token": token}
            for operations in schema["paths"].values():
                for operation in operations.values():
                    operation.setdefault("security", needs(Scope.ADMIN)["security"])
            if settings.open_routes:
                method, path = OPEN_ROUTE
                schema["paths"][path][method.lower()] |= NO_TOKEN
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
