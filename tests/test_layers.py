"""Imports point one way, and the rooms keep what the design says of them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: What each room may import of ours.
MAY_IMPORT = {
    "storage": set[str](),
    "mezo": set[str](),
    "backprop": {"mezo"},
    "daemon": {"storage", "mezo", "backprop"},
    "api": {"daemon", "storage", "mezo"},
}
#: What backprop may import of mezo: the streamed model, and what belongs to no method.
OF_NO_METHOD = {
    "mezo/adapters.py",
    "mezo/batches.py",
    "mezo/errors.py",
    "mezo/layers.py",
    "mezo/loss.py",
    "mezo/model.py",
    "mezo/step_record.py",
    "mezo/shapes.py",
    "mezo/streaming.py",
    "mezo/weights.py",
}
#: Modules that run in processes of their own, where torch is wanted.
WITH_TORCH = {
    "daemon/worker.py",
    "daemon/measuring.py",
    "daemon/rehearsal.py",
    "daemon/replaying.py",
    "daemon/reporting.py",
    "daemon/run_store.py",
    "daemon/torch_models.py",
    "daemon/trainer.py",
    "daemon/training_run.py",
    "daemon/validation_split.py",
}
#: Modules of mezo that the daemon's process uses; they must do without torch.
TORCH_FREE = {
    "mezo/__init__.py",
    "mezo/adapter_folder.py",
    "mezo/budget.py",
    "mezo/decoding.py",
    "mezo/errors.py",
    "mezo/gguf_header.py",
    "mezo/gguf_lora.py",
    "mezo/gguf_origin.py",
    "mezo/gguf_untied.py",
    "mezo/lean_tokenizer.py",
    "mezo/lexicon.py",
    "mezo/native.py",
    "mezo/shapes.py",
    "mezo/tensor_file.py",
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports when it runs; what stands under TYPE_CHECKING does not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module or ""


def top_level_imports(path: Path) -> Iterator[str]:
    """What a file imports as soon as it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / room).rglob("*.py")
        for name in imports(path)
        if name.startswith("pocketllm")
        and name.split(".")[1:2] != [room]
        and name.split(".")[1] not in MAY_IMPORT[room]
    ]
    assert not wrong


def test_the_check_sees_a_wrong_import(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("if True:\n    from pocketllm.daemon import gate\n")
    assert list(imports(tmp_path / "x.py")) == ["pocketllm.daemon"]


def test_the_daemons_process_imports_no_torch() -> None:
    rooms = [path for room in ("storage", "daemon", "api") for path in (ROOT / room).rglob("*.py")]
    files = [path for path in rooms if str(path.relative_to(ROOT)) not in WITH_TORCH]
    files += [ROOT / name for name in TORCH_FREE] + [ROOT / "pocketllm" / "server.py"]
    heavy = (
        "torch",
        "transformers",
        "safetensors.torch",
        "pocketllm.backprop",
        "pocketllm.mezo.model",
        "pocketllm.mezo.adapters",
    )
    wrong = [
        f"{path.name} imports {name}" for path in files for name in top_level_imports(path) if name.startswith(heavy)
    ]
    assert not wrong


def test_backprop_knows_nothing_of_mezos_method() -> None:
    """Of the directory mezo it imports the streamed model, on which both methods stand."""
    imported = {
        name.removeprefix("pocketllm.").replace(".", "/") + ".py"
        for path in (ROOT / "backprop").glob("*.py")
        for name in imports(path)
        if name.startswith("pocketllm.mezo")
    }
    assert imported <= OF_NO_METHOD


@pytest.mark.parametrize("room", ["mezo", "backprop"])
def test_the_learner_is_pure(room: str) -> None:
    """No database, no HTTP, no clock of its own."""
    banned = ("sqlite3", "sqlmodel", "sqlalchemy", "fastapi", "httpx", "time")
    wrong = [
        f"{path.name} imports {name}"
        for path in (ROOT / room).glob("*.py")
        for name in imports(path)
        if name.split(".")[0] in banned
    ]
    assert not wrong


def test_no_file_is_longer_than_one_sitting() -> None:
    folders = ("api", "backprop", "bench", "daemon", "mezo", "pocketllm", "storage", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert not long
