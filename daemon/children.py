"""The environment of the processes that compute."""

import os


def child_environment() -> dict[str, str]:
    """Ours, with OpenMP threads that sleep while they wait for each other.

    By default they spin. At the lowest priority, on cores that others use too, the spinning thread takes the time
    that the one it waits for would need: a step was seen to take seven times as long then, and a tiny model's a
    hundred times. Sleeping costs half more on a machine that does nothing else (0.51 against 0.33 s a step).
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
