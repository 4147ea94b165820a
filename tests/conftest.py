"""What many tests need: a tiny real model, and a place that is not the developer's own."""

import os
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from tests.support.loopback_only import sitecustomize as loopback_only

# Before torch is imported: see pocketllm.daemon.child.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many processes as cores

from pocketllm.engine.formats.importer import default_source, import_model
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from tests.support.models.tiny_models import tiny_llama_folder, tiny_model_folder, write_tiny_gguf

# No process of a test run may leave this machine: this one, and by their path those that it starts.
STAYS_HERE = Path(__file__).parent / "support" / "loopback_only"
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STAYS_HERE), os.environ.get("PYTHONPATH")]))
if loopback_only.NOTES not in os.environ:  # the first process of the run
    os.environ[loopback_only.NOTES] = tempfile.mkstemp(prefix="left-this-machine-")[1]

#: `make stress` and `make nightly` name this folder.
collect_ignore = ["stress"]

#: Examples have no deadline: beside other work they take as long as they take. `make nightly` takes hypothesis' own
#: number of them, `make test` and `make ci` fewer.
hypothesis.settings.register_profile("all", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
hypothesis.settings.load_profile("all")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a process has tried to leave this machine."""
    notes = Path(os.environ[loopback_only.NOTES])
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    tried = notes.read_text()
    notes.unlink()
    if tried:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        session.config.get_terminal_writer().line(f"\nProcesses have tried to leave this machine:\n{tried}", red=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-programs", action="store_true", help="a test fails when a program that it needs is not installed"
    )
    parser.addoption("--full", action="store_true", help="stress tests with the sizes that prove figures")
    parser.addoption(
        "--examples", type=int, default=3, help="how many requests of each kind and operation schemathesis makes"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.getoption("--require-programs") and "is not installed" in str(report.longrepr):
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A tiny imported model, in fp32 so that arithmetic can be compared closely."""
    return open_model_folder(tiny_model_folder(tmp_path_factory.mktemp("models"), dtype="float32"))


@pytest.fixture(scope="session")
def tiny_bf16(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The same in bf16, as models are imported by default."""
    return open_model_folder(tiny_model_folder(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this process keeps the tiny models of each family: see tests.support.models.learning."""
    return tmp_path_factory.getbasetemp() / "architectures"


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """The real default model in bf16, imported once a process."""
    models = tmp_path_factory.mktemp("smollm2")
    import_model(default_source(), models, name="smollm2")
    return open_model_folder(models / "smollm2")


@pytest.fixture(autouse=True)
def _nothing_of_the_developers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings come from the tests alone, and the width of a terminal does, too (pytest-xdist sets one)."""
    monkeypatch.setenv("POCKETLLM_CONFIG", str(tmp_path / "no-config.toml"))
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Hugging Face folder; tests do not change it."""
    return tiny_llama_folder(tmp_path_factory.mktemp("sources") / "Tiny Llama")


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """The same model as GGUF; tests do not change it."""
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "Tiny-Llama.Q8_0.gguf", llama)


@pytest.fixture(scope="session")
def from_gguf(tmp_path_factory: pytest.TempPathFactory, tiny_gguf: Path) -> Path:
    """A folder with the model `tiny`, imported from the GGUF file that is beside it; tests do not change it."""
    folder = tmp_path_factory.mktemp("from-gguf")
    import_model(str(shutil.copy(tiny_gguf, folder)), folder, name="tiny")
    return folder
