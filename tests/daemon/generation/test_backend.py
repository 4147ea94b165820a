"""Which backend there is: what speaks against llama.cpp, and whether a model's GGUF file is still the same."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from pocketllm.daemon.generation.backend import PACKAGE, Backend, LlamaCpp, expected_backend, find_llamacpp
from pocketllm.daemon.generation.process import Answerer
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.settings import load_settings
from pocketllm.daemon.tools.doctor import _of_folder
from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.gguf_origin import find_origin
from pocketllm.engine.formats.importer import import_model
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from tests.support.llama_double import llama_double

NOWHERE = "/nowhere"


@pytest.fixture
def base(tmp_path: Path, tiny_gguf: Path) -> Path:
    return Path(shutil.copy(tiny_gguf, tmp_path))


@pytest.fixture
def model_folder(tmp_path: Path, base: Path) -> ModelFolder:
    import_model(str(base), tmp_path / "models", name="mine")
    return open_model_folder(tmp_path / "models" / "mine")


@pytest.fixture(autouse=True)
def _no_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", NOWHERE)
    monkeypatch.setitem(sys.modules, PACKAGE, None)


def reason(found: LlamaCpp | Backend) -> str:
    assert isinstance(found, Backend) and found.name == "transformers"
    return str(found.reason)


def test_the_file_that_a_model_came_from_is_found_again(model_folder: ModelFolder, base: Path) -> None:
    assert find_origin(model_folder.manifest) == base
    os.utime(base, (1, 1))  # as after the package that holds it was installed anew
    assert find_origin(model_folder.manifest) == base


def test_another_file_in_its_place_is_not_taken_for_it(model_folder: ModelFolder, base: Path) -> None:
    content = bytearray(base.read_bytes())
    content[-1] ^= 1
    base.write_bytes(content)
    with pytest.raises(ModelFileError, match="no longer the file that mine was imported from"):
        find_origin(model_folder.manifest)
    base.write_bytes(content[:-1])
    with pytest.raises(ModelFileError, match="no longer the file"):
        find_origin(model_folder.manifest)
    base.unlink()
    with pytest.raises(ModelFileError, match="cannot be read: No such file"):
        find_origin(model_folder.manifest)


def test_a_model_of_another_format_has_none(tiny: ModelFolder) -> None:
    with pytest.raises(ModelFileError, match="tiny was not imported from a GGUF file"):
        find_origin(tiny.manifest)


def test_without_llama_cpp_it_is_told_how_to_get_it(model_folder: ModelFolder) -> None:
    assert "pip install 'pocketllm[llamacpp]'" in reason(find_llamacpp(model_folder, "auto"))
    assert "pkg install llama-cpp" in reason(find_llamacpp(model_folder, "llamacpp"))


def test_a_program_on_the_path_goes_before_the_package(
    model_folder: ModelFolder, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, PACKAGE)
    assert find_llamacpp(model_folder, "auto") == LlamaCpp(program=PACKAGE, base=base)
    double = llama_double(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert find_llamacpp(model_folder, "auto") == LlamaCpp(program=str(double.path), base=base)
    assert expected_backend(model_folder, "auto") == Backend()
    assert reason(find_llamacpp(model_folder, "transformers")) == "the setting backend is transformers"


def test_llama_cpp_asked_for_in_vain_is_an_error(model_folder: ModelFolder, base: Path, tmp_path: Path) -> None:
    base.unlink()
    with pytest.raises(
        UnsupportedModel, match=r"The setting backend is llamacpp, but .*gguf, which mine was imported from"
    ):
        Answerer(DataFolder(tmp_path), model_folder.path, "llamacpp", 10**9)


@pytest.mark.usefixtures("model_folder")
def test_the_doctor_says_what_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(preference: str) -> str:
        settings = load_settings({"data_dir": tmp_path, "model": "mine", "backend": preference})
        [finding] = [finding for finding in _of_folder(DataFolder(tmp_path), settings) if finding.name == "answers"]
        return f"{finding.state}: {finding.message}"

    missing = "transformers, not llama.cpp: llama.cpp is not installed"
    assert found("auto").startswith(f"unknown: {missing}")
    assert found("llamacpp").startswith(f"bad: {missing}")
    llama_double(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert found("auto").startswith("good: llama.cpp (")
    assert found("transformers").startswith("good: transformers: the setting backend is transformers")
