"""Measuring in a process of its own, and its environment."""

import mmap
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pocketllm.daemon.child import child_environment
from pocketllm.daemon.errors import ChildFailed
from pocketllm.daemon.tools.calibrate import measure, resident_bytes
from pocketllm.engine.formats.model_folder import FLOAT_DTYPES, WEIGHTS_NAME, ModelFolder
from tests.support.daemon.commands import WAIT_SECONDS
from tests.support.models.tiny_models import tiny_model_folder

MB = 10**6


@pytest.mark.slow
def test_a_process_of_its_own_measures(tiny: ModelFolder) -> None:
    found = measure(tiny.path)
    assert found["compute_dtype"] in FLOAT_DTYPES
    assert found["gemm_flops"] > 0
    # torch, transformers and a tiny model: neither nothing nor a gigabyte.
    assert 50 * MB < found["library_anonymous_bytes"] < 800 * MB
    assert 20 * MB < found["library_file_bytes"] < 800 * MB


@pytest.mark.slow
def test_truncated_weights(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    with (folder / WEIGHTS_NAME).open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(ChildFailed, match=r"model.safetensors is 10000 bytes, not .*Import the model again\.$"):
        measure(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        # The kernel ends the inner process after a second of processor time; the outer one needs less.
        ("RLIMIT_CPU", 1, r"The calibrate process was killed by signal 9\. Perhaps memory .*"),
        # torch's libraries do not fit into this: an error that nobody foresaw.
        ("RLIMIT_AS", 250 * MB, r"The calibrate process exited with code 1: \w*Error: .*\. Perhaps memory .*"),
    ],
)
def test_a_process_that_dies(tiny: ModelFolder, limit: str, value: int, words: str) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from pocketllm.daemon.tools.calibrate import measure\n"
        f"resource.setrlimit(resource.{limit}, ({value}, {value}))\n"
        "measure(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", code, str(tiny.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert re.search(rf"ChildFailed: {words}$", done.stderr.strip())


def test_resident_memory_of_this_process() -> None:
    before = resident_bytes()["library_anonymous_bytes"]
    # Pages of its own: the heap may hold as much that earlier tests have freed.
    with mmap.mmap(-1, 20 * MB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held.write(b"x" * len(held))
        assert resident_bytes()["library_anonymous_bytes"] > before + len(held) // 2


def test_what_the_user_set_stays_in_a_childs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    environment = child_environment()
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert environment["MALLOC_TOP_PAD_"] == "1"
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "268435456"


def test_threads_look_for_work_for_a_moment_before_they_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert 0 < int(child_environment()["GOMP_SPINCOUNT"]) < 10_000, "a long look would take the core from others"
    assert child_environment()["KMP_BLOCKTIME"] == "80us"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert child_environment()["GOMP_SPINCOUNT"] == "7"
