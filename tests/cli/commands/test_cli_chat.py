"""`pocketllm chat` against the real application, and at a terminal."""

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.support.daemon.commands import WAIT_SECONDS, Run, child_environment
from tests.support.daemon.served import Served


def test_a_conversation_is_sent_as_a_whole(run: Run, served: Served) -> None:
    result = run(
        "chat", "--system", "Be brief.", "--max-tokens", "9", stdin="Hello\n\nAnd then?\n/new\nAnew\n/bye\nno\n"
    )
    assert result.exit_code == 0
    answer = "".join(served.words.words)
    system = {"role": "system", "content": "Be brief."}
    hello = [system, {"role": "user", "content": "Hello"}]
    assert [request.messages for request in served.words.asked] == [
        hello,
        [*hello, {"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}],
        [system, {"role": "user", "content": "Anew"}],
    ]
    assert {request.max_tokens for request in served.words.asked} == {9}
    assert result.stdout == f"{answer}\n" * 3


def test_what_was_not_answered_ends_a_script(run: Run, served: Served) -> None:
    served.breaks_off = True
    result = run("chat", stdin="Hello\n")
    assert result.exit_code == 1 and "stopped in the middle" in result.stderr


def test_at_a_terminal_it_asks_and_ends_with_ctrl_d(home: Path, served: Served) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "pocketllm", "chat"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=child_environment(home),
        start_new_session=True,
    )
    os.close(theirs)
    said = list[bytes]()
    for answer in (b"Hello\n", b"Again\n", b"\x04"):
        said.append(b"")
        while not said[-1].endswith(b"> "):
            said[-1] += os.read(ours, 4096)
        served.breaks_off = b"Again" in answer
        os.write(ours, answer)
    assert b"mugs of tea" in said[1] and b"Not answered: The daemon stopped in the middle" in said[2]
    with suppress(OSError):  # at its end
        while os.read(ours, 4096):
            pass
    assert process.wait(WAIT_SECONDS) == 0
    os.close(ours)
    assert len(served.words.asked) == 2
