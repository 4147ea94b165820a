"""`pocketllm generate`: the words alone on stdout, and every choice on its way to the daemon."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from tests.support.commands import WAIT_SECONDS, Run, child_environment
from tests.support.daemon_double import DaemonDouble


class TestGenerate:
    def test_streams_the_text_alone(self, run: Run, double: DaemonDouble) -> None:
        result = run("generate", "One or")
        assert result.stdout == " two\u2028mugs of tea\n"
        assert result.stderr == ""
        assert double.bodies("POST", "/generate") == [{"prompt": "One or", "stream": True}]

    def test_whole(self, run: Run, double: DaemonDouble) -> None:
        assert run("generate", "One or", "--no-stream").stdout == " two\u2028mugs of tea\n"
        assert double.bodies("POST", "/generate") == [{"prompt": "One or"}]

    def test_every_choice_is_sent(self, run: Run, double: DaemonDouble) -> None:
        choices = "--temperature 0 --top-p 0.5 --max-tokens 9 --stop . --stop ! --seed 0 --adapter a-1 --chat"
        run("generate", "Hello", *choices.split())
        assert double.bodies("POST", "/generate") == [
            {
                "messages": [{"role": "user", "content": "Hello"}],
                "adapter": "a-1",
                "temperature": 0.0,
                "top_p": 0.5,
                "max_tokens": 9,
                "stop": [".", "!"],
                "seed": 0,
                "stream": True,
            }
        ]

    def test_base_and_stdin(self, run: Run, double: DaemonDouble) -> None:
        run("generate", "-", "--base", stdin="From a pipe\n")
        assert double.bodies("POST", "/generate") == [{"prompt": "From a pipe", "adapter": "base", "stream": True}]

    def test_base_and_adapter_exclude_each_other(self, run: Run) -> None:
        result = run("generate", "x", "--base", "--adapter", "a-1")
        assert result.exit_code == 2
        assert "exclude each other" in result.stderr

    def test_a_broken_stream_keeps_what_came(self, run: Run, double: DaemonDouble) -> None:
        double.breaks_off = True
        result = run("generate", "x")
        assert result.exit_code == 1
        assert result.stdout == " two\u2028mugs of tea\n"
        assert "in the middle of the text" in result.stderr

    def test_a_terminal_gets_no_control_characters_and_the_facts(self, double: DaemonDouble, home: Path) -> None:
        double.tokens = ["safe\x1b[2J"]
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
