"""Small executables in the place of a system's own: they answer, hang, crash or talk nonsense."""

from pathlib import Path


def executable(folder: Path, name: str, script: str) -> str:
    """Write a shell script that can be run; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    file.chmod(0o755)
    return str(file)


def answering(folder: Path, name: str, answer: str) -> str:
    """One that prints this."""
    text = folder / f"{name}.answer"
    folder.mkdir(parents=True, exist_ok=True)
    text.write_text(answer, encoding="utf-8")
    return executable(folder, name, f'cat "{text}"')
