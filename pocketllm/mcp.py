"""`pocketllm mcp`: tools for assistants, by the Model Context Protocol on stdin and stdout. Nothing is logged."""

from collections.abc import Callable, Collection
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from pocketllm import __version__
from pocketllm.client import Client
from pocketllm.errors import CommandError, Document
from pocketllm.home import find_target


def serve(url: str | None, data_dir: Path | None, scopes: Collection[str]) -> None:
    """Answer with the tools of these scopes until stdin ends. A tool's docstring is what an assistant knows of it."""

    def ask(send: Callable[[Client], Document]) -> Document:
        try:
            with Client(find_target(url, data_dir)) as client:
                return send(client)
        except CommandError as error:
            raise ToolError(str(error)) from error

    def search_my_texts(words: str, limit: int = 5) -> str:
        """Search all that the user has written for any of these words. Returns up to 20 passages, best match first."""
        found = ask(lambda client: client.get("passages", query=words, limit=limit))["data"]
        return "\n\n".join(one["passage"] for one in found) or "No text contains any of these words."

    def continue_like_me(text: str, max_tokens: int = 60) -> str:
        """Continue a text as the user would, by a small model that has learned from what the user writes."""
        return str(ask(lambda client: client.post("generate", body={"prompt": text, "max_tokens": max_tokens}))["text"])

    def which_label(text: str, labels: list[str]) -> str:
        """Tell which of these labels the user would give a text, judged by the texts that the user has labelled."""
        found = ask(lambda client: client.post("classify", body={"text": text, "labels": labels}))["labels"]
        return "\n".join(f"{one['label']}: {one['probability']:.1%}" for one in found)

    def remember(text: str) -> str:
        """Store a text for the user's model to learn: words that the user wrote, unchanged, and never your own."""
        ask(lambda client: client.post("texts", body={"text": text, "source": "assistant"}))
        return "Stored."

    server = MCPServer("pocketllm", version=__version__, log_level="CRITICAL")
    tools: list[Callable[..., str]] = [search_my_texts, continue_like_me, which_label, remember]
    for tool, scope in zip(tools, ("recall", "generate", "generate", "ingest"), strict=True):
        if scope in scopes:
            server.add_tool(tool, structured_output=False)
    server.run()
