"""A log never holds what somebody wrote, and nobody can fill the disk with it."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pocketllm.daemon.logs import PrivateFormatter, Sparing, described, summary
from tests.support.daemon.in_process_app import Clock

DIARY = "the brass key to the blue cellar"


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


Log = tuple[logging.Logger, io.StringIO, Clock]


@pytest.fixture
def log() -> Iterator[Log]:
    written, clock = io.StringIO(), Clock()
    handler = logging.StreamHandler(written)
    handler.setFormatter(PrivateFormatter("%(levelname)s %(message)s"))
    handler.addFilter(Sparing(lambda: clock.now.timestamp()))
    logger = logging.getLogger("test_logs")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield logger, written, clock
    logger.removeHandler(handler)


def test_an_exception_is_described_without_what_it_quotes() -> None:
    error = raised(KeyError(DIARY))
    assert summary(error).startswith("KeyError at test_logs.py, line ")
    assert DIARY not in described(error) and "raise error" in described(error)


def test_what_is_said_about_the_machine_is_kept() -> None:
    assert summary(raised(OSError(28, "No space left on device"))).endswith("No space left on device")
    assert summary(RuntimeError("no memory\nand more")) == "RuntimeError: no memory"


def test_the_exceptions_that_led_to_one_are_described_before_it() -> None:
    try:
        try:
            raise ValueError(DIARY)
        except ValueError as first:
            raise KeyError(DIARY) from first
    except KeyError as last:
        lines = described(last).splitlines()
    assert [line.split(" ")[0] for line in lines if line[0] != " "] == ["ValueError", "KeyError"]
    assert lines[-1].startswith("KeyError") and DIARY not in "\n".join(lines)


def test_exceptions_that_led_to_each_other_end() -> None:
    one, other = ValueError(), KeyError()
    one.__context__, other.__context__ = other, one
    assert described(one).count("\n") == 2


def test_a_process_ends_with_a_last_line_that_quotes_nothing() -> None:
    # Python 3.13 and later show the line, so the words come from elsewhere.
    code = "import sys\nfrom pocketllm.daemon import logs\nlogs.describe_uncaught()\nraise KeyError(sys.argv[1])"
    ended = subprocess.run([sys.executable, "-c", code, DIARY], capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and DIARY not in ended.stderr
    assert ended.stderr.splitlines()[-1] == "KeyError at <string>, line 4"


def test_the_log_is_written_without_what_exceptions_quote(log: Log) -> None:
    logger, written, _ = log
    logger.error("it broke", exc_info=raised(KeyError(DIARY)))
    assert "ERROR it broke" in written.getvalue() and "KeyError at" in written.getvalue()
    assert DIARY not in written.getvalue()


def test_a_warning_that_comes_again_and_again_is_said_a_few_times(log: Log) -> None:
    logger, written, clock = log
    for number in range(1000):
        logger.warning("connection %d broke", number)
    logger.warning("another thing")
    assert len(written.getvalue().splitlines()) == 11
    clock.advance(60)
    logger.warning("connection %d broke", 1000)
    assert written.getvalue().splitlines()[-1] == "WARNING connection 1000 broke (and 990 more of this kind)"


def test_what_is_no_warning_is_always_said(log: Log) -> None:
    logger, written, _ = log
    for _number in range(20):
        logger.info("a job has started")
    assert len(written.getvalue().splitlines()) == 20


def test_warnings_of_many_kinds_take_no_more_memory() -> None:
    sparing = Sparing(lambda: 0.0)
    for number in range(5000):
        sparing.filter(logging.LogRecord("a", logging.WARNING, "", 0, f"kind {number}", None, None))
    assert len(sparing._counts) <= 1000
