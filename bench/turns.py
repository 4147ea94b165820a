"""Contenders that take turns, each in a process of its own with an environment of its own.

A process is started once and then waits: a line on its stdin is its turn. It takes two steps and answers with the
seconds of the second: in training a step follows a step, while the first one after a pause finds the caches cold.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from bench.child import write_line
from bench.harness import ROOT, progress

#: Takes a turn and returns its seconds; None when the process has ended.
Turn = Callable[[], float | None]


def serve(step: Callable[[], object]) -> None:
    """Take a turn for each line of stdin, until its end."""
    for _ in sys.stdin:
        step()
        started = time.perf_counter()
        step()
        write_line({"seconds": time.perf_counter() - started})


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Turn]:
    """What takes a turn of a command that calls `serve`."""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        stdin, stdout = process.stdin, process.stdout

        def turn() -> float | None:
            with suppress(BrokenPipeError):
                stdin.write("\n")
                stdin.flush()
            answer = stdout.readline()
            return float(json.loads(answer)["seconds"]) if answer else None

        try:
            yield turn
        finally:
            process.kill()
            with suppress(BrokenPipeError):
                stdin.close()


def in_turns(
    commands: Mapping[str, tuple[Sequence[str], Mapping[str, str] | None]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every contender that does not fail, one a round; a round before the first is not counted.

    commands: name -> command line and environment.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with ExitStack() as stack:
        turns = {name: stack.enter_context(started(*command)) for name, command in commands.items()}
        for number in range(rounds + 1):
            for name, turn in turns.items():
                taken = turn() if name in seconds else None
                if taken is None:
                    seconds.pop(name, None)
                elif number:
                    seconds[name].append(taken)
                said = "failed" if taken is None else f"{taken:.3f} s"
                progress(f"  {'warm-up' if number == 0 else f'round {number}'}: {name}, {said}")
    return seconds
