"""`pocketllm generate`, `suggest` and `chat`: the words on stdout, and every choice on its way to the generator."""

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from pocketllm.daemon.generation.generator import GenerationRequest
from tests.support.daemon.commands import WAIT_SECONDS, Run, child_environment
from tests.support.daemon.served import Served


def test_the_text_alone_is_written(run: Run, served: Served) -> None:
    result = run("generate", "One or")
    assert (result.stdout, result.stderr) == (" two\u2028mugs of tea\n", "")
    assert run.json("generate", "One or")["text"] == " two\u2028mugs of tea"
    assert [request.prompt for request in served.words.asked] == ["One or"] * 2


def test_every_choice_reaches_the_generator(run: Run, served: Served) -> None:
    adapter = served.learn()
    choices = "--temperature 0 --top-p 0.5 --max-tokens 9 --stop . --stop ! --seed 0 --chat"
    run("generate", "Hello", *choices.split(), "--adapter", adapter)
    run("generate", "-", "--base", "--temperature", "0.5", stdin="From a pipe\n")
    chosen, from_base = served.words.asked
    assert chosen == GenerationRequest(
        messages=[{"role": "user", "content": "Hello"}],
        adapter=served.api.services.folder.adapter(adapter),
        temperature=0.0,
        top_p=0.5,
        max_tokens=9,
        stop=(".", "!"),
        seed=0,
    )
    assert (from_base.prompt, from_base.adapter, from_base.temperature) == ("From a pipe", None, 0.5)


def test_base_and_adapter_exclude_each_other(run: Run) -> None:
    assert "exclude each other" in run.refused("generate", "x", "--base", "--adapter", "a-1", code=2)


def test_a_broken_stream_keeps_what_came(run: Run, served: Served) -> None:
    served.breaks_off = True
    result = run("generate", "x")
    assert result.exit_code == 1
    assert result.stdout == " two\u2028mugs of tea\n"
    assert "in the middle of the text" in result.stderr


def test_a_terminal_gets_no_control_characters_and_the_facts(served: Served, home: Path) -> None:
    served.words.words = ["safe\x1b[2J"]
    ours, theirs = pty.openpty()
    try:
        child = subprocess.run(
            [sys.executable, "-m", "pocketllm", "generate", "x"],
            env=child_environment(home),
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert child.returncode == 0
        assert os.read(ours, 1000) == b"safe[2J\r\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_suggest_shows_the_share_of_what_begins_as_typed(run: Run) -> None:
    assert run.said("suggest", "Happy birth") == " 91.0%  day\n"
    assert run.json("suggest", "Happy birth")["replaces"] == 0


def test_suggest_says_what_the_words_are_from(run: Run, served: Served) -> None:
    assert run("suggest", "x").stderr == "From the base model and your words, without an adapter.\n"
    assert run("suggest", "x", "--base").stderr == "From the base model, without an adapter.\n"
    served.learn()
    assert run("suggest", "x").stderr == ""


def test_chat_sends_the_conversation_as_a_whole(run: Run, served: Served) -> None:
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


def test_chat_in_a_script_ends_at_what_was_not_answered(run: Run, served: Served) -> None:
    served.breaks_off = True
    result = run("chat", stdin="Hello\n")
    assert result.exit_code == 1 and "stopped in the middle" in result.stderr


def test_chat_at_a_terminal_asks_and_ends_with_ctrl_d(home: Path, served: Served) -> None:
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
