"""What counts as want of memory."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from pocketllm.daemon.process_memory import cap_anonymous_memory, lift_cap, out_of_memory

MB = 10**6
#: prctl(2), as systemd's MemoryDenyWriteExecute calls it.
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
#: A product in bf16 where memory that was written cannot be run.
PRODUCT = f"""
import ctypes, torch
assert ctypes.CDLL(None).prctl({PR_SET_MDWE}, {PR_MDWE_REFUSE_EXEC_GAIN}, 0, 0, 0) == 0
from pocketllm.daemon.process_memory import fail_where_memory_ends, out_of_memory
fail_where_memory_ends()
x = torch.ones(64, 256, dtype=torch.bfloat16)
try:
    print(float((x @ x.T)[0, 0]))
except Exception as error:
    assert "primitive" in str(error), error
    print("out of memory" if out_of_memory(error) else "forbidden")
"""
#: A process that its user allows little.
LIMITED = """
import resource
from pocketllm.daemon.process_memory import bytes_of, cap_anonymous_memory
hard = bytes_of("VmData") + 100_000_000
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
cap_anonymous_memory(1_000_000_000)
print(resource.getrlimit(resource.RLIMIT_DATA) == (hard, hard))
"""


@pytest.fixture
def little_memory() -> Iterator[None]:
    cap_anonymous_memory(100 * MB)
    yield
    lift_cap()


def test_a_failed_allocation_is_want_of_memory() -> None:
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    assert not out_of_memory(ValueError("shapes differ"))


def test_a_missing_primitive_is_want_of_memory_only_where_little_is_left(little_memory: None) -> None:
    error = RuntimeError("could not create a primitive")
    assert out_of_memory(error)
    lift_cap()
    assert not out_of_memory(error)


def test_where_code_may_not_be_written_no_product_ran_out_of_memory() -> None:
    said = subprocess.run([sys.executable, "-c", PRODUCT], capture_output=True, text=True, check=False)
    assert said.stdout.strip() in ("256.0", "forbidden"), said.stderr  # by the processor


def test_the_users_own_lower_limit_stays() -> None:
    said = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert said.stdout.strip() == "True", said.stderr
