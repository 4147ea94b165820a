"""The environment of the processes that compute."""

import os


def child_environment() -> dict[str, str]:
    """Ours, with OpenMP threads that sleep while they wait for each other.

    By default they spin. At the lowest priority, on cores that others use too, the spinning thread takes the time
    that the one it waits for would need: seen here, a step then takes ten times as long, at full load.
    """
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
