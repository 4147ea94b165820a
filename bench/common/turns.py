"""Contenders that take turns, each in a process of its own with an environment of its own.

A process is started once and then waits: a line on its stdin is its turn, which it answers with a line of JSON
(`bench.common.child --turns`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from bench.common.harness import ROOT, progress

#: A command line, and its environment; None: ours.
Contender = tuple[Sequence[str], Mapping[str, str] | None]
#: Takes a turn and returns the answer; None when the process has ended.
Turn = Callable[[], dict[str, Any] | None]


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Turn]:
    """What takes a turn of a command. The process is ended with the block."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def turn() -> dict[str, Any] | None:
            with suppress(BrokenPipeError):
                stdin.write("\n")
                stdin.flush()
            answer = stdout.readline()
            return dict(json.loads(answer)) if answer else None

        try:
            yield turn
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                stdin.close()


def in_turns(contenders: Mapping[str, Contender], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contender that does not fail, one a round; a round before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        turns = {name: stack.enter_context(started(*contender)) for name, contender in contenders.items()}
        for number in range(rounds + 1):
            for name, turn in turns.items():
                answer = turn() if name in seconds else None
                if answer is None:
                    seconds.pop(name, None)
                elif number:
                    seconds[name].append(float(answer["seconds"]))
                said = "failed" if answer is None else f"{answer['seconds']:.3f} s"
                progress(f"  {'warm-up' if number == 0 else f'round {number}'}: {name}, {said}")
    return seconds
