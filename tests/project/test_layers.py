"""Imports point one way, and the rooms keep what the design says of them."""

import ast
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

#: What each room may import of ours.
MAY_IMPORT = {
    "storage": set[str](),
    "engine": set[str](),
    "mezo": {"engine"},
    "backprop": {"engine"},
    "daemon": {"storage", "engine", "mezo", "backprop"},
    "api": {"daemon", "storage", "engine"},
}
#: The engine's floors; each may import those before it alone, also for types.
FLOORS = ("formats", "data", "params", "streamed", "generate", "planning")
#: Modules that run in processes of their own, where torch is wanted.
WITH_TORCH = {
    *("daemon/training/checkpoints.py", "daemon/training/rehearsal.py", "daemon/training/run.py"),
    *("daemon/training/trainer.py", "daemon/training/validation_split.py", "daemon/training/worker.py"),
    *("daemon/evaluation/held_out.py", "daemon/evaluation/report.py"),
    "daemon/generation/torch_models.py",
}
#: Modules of the engine that the daemon's process uses; they must do without torch.
TORCH_FREE = {
    *("engine/__init__.py", "engine/errors.py", "engine/formats/lora_folder.py"),
    *("engine/planning/memory_model.py", "engine/planning/shapes.py"),
    *("engine/generate/streaming_text.py", "engine/formats/tokenizer.py", "engine/streamed/families.py"),
    *("engine/formats/gguf_lora.py", "engine/formats/gguf_origin.py"),
    *("engine/formats/model_folder.py", "engine/formats/safetensors_io.py"),
}
SOURCE = ("api", "backprop", "daemon", "engine", "mezo", "pocketllm", "storage")
#: The most modules that a folder may hold.
MAX_MODULES = 16


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports when it runs; what stands under TYPE_CHECKING does not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return imported(node for node in ast.walk(tree) if node not in typing_only)


def all_imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, also for types."""
    return imported(ast.walk(ast.parse(path.read_text())))


def top_level_imports(path: Path) -> Iterator[str]:
    """What a file imports as soon as it is imported itself."""
    return imported(ast.parse(path.read_text()).body)


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The modules that these import, and what they import from them, which may be modules, too."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0, "a relative import"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def wrong_imports(
    files: Iterable[Path], is_wrong: Callable[[str], bool], imports_of: Callable[[Path], Iterator[str]] = imports
) -> list[str]:
    """The imports in these files that must not be."""
    return [f"{path.relative_to(ROOT)} imports {name}" for path in files for name in imports_of(path) if is_wrong(name)]


def modules(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in (ROOT / room).rglob("*.py")]


def is_of(name: str, *packages: str) -> bool:
    """Whether it is one of the packages, or in one."""
    return f"{name}.".startswith(tuple(f"{package}." for package in packages))


def check_that_there_is_no_circle(files: Iterable[Path], imports_of: Callable[[Path], Iterator[str]]) -> None:
    by_name = {module_of(path): path for path in files}
    TopologicalSorter({name: by_name.keys() & set(imports_of(path)) for name, path in by_name.items()}).prepare()


def module_of(path: Path) -> str:
    """Its name as others import it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in ("pocketllm", *parts[parts[0] == "pocketllm" :]) if part != "__init__")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room: str) -> None:
    allowed = [f"pocketllm.{name}" for name in (room, *MAY_IMPORT[room])]
    assert not wrong_imports(modules(room), lambda name: name.startswith("pocketllm.") and not is_of(name, *allowed))


@pytest.mark.parametrize("floor", FLOORS)
def test_the_engines_floors_import_one_way(floor: str) -> None:
    later = [f"pocketllm.engine.{name}" for name in FLOORS[FLOORS.index(floor) + 1 :]]
    assert not wrong_imports((ROOT / "engine" / floor).glob("*.py"), lambda name: is_of(name, *later), all_imports)


def test_no_modules_import_each_other_in_a_circle_nor_the_learners_for_types() -> None:
    check_that_there_is_no_circle(modules(*SOURCE), imports)
    check_that_there_is_no_circle(modules("engine", "mezo", "backprop"), all_imports)


def test_nothing_imports_the_command_line() -> None:
    package = ROOT / "pocketllm"
    files = {*package.glob("*.py"), *package.glob("readers/*.py")} - {package / "__main__.py"}
    assert not wrong_imports(files, lambda name: is_of(name, "pocketllm.cli"))


def test_the_check_sees_a_wrong_import(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("if True:\n    from pocketllm.daemon import gate\n")
    assert list(imports(tmp_path / "x.py")) == ["pocketllm.daemon", "pocketllm.daemon.gate"]


def test_the_daemons_process_imports_no_torch() -> None:
    rooms = modules("storage", "daemon", "api")
    files = [path for path in rooms if str(path.relative_to(ROOT)) not in WITH_TORCH]
    files += [ROOT / name for name in TORCH_FREE] + [ROOT / "pocketllm" / "server.py"]
    heavy = (
        *("torch", "transformers", "safetensors.torch", "pocketllm.backprop", "pocketllm.mezo"),
        *("pocketllm.engine.streamed.model", "pocketllm.engine.params.lora"),
    )
    assert not wrong_imports(files, lambda name: is_of(name, *heavy), top_level_imports)


def test_the_language_server_alone_imports_its_protocol() -> None:
    files = set(modules(*SOURCE)) - {ROOT / "pocketllm" / "lsp.py"}
    assert not wrong_imports(files, lambda name: is_of(name, "pygls", "lsprotocol"))


def test_the_learner_is_pure() -> None:
    """No database, no HTTP, no clock of its own."""
    banned = ("sqlite3", "sqlmodel", "sqlalchemy", "fastapi", "httpx", "time")
    assert not wrong_imports(modules("engine", "mezo", "backprop"), lambda name: is_of(name, *banned))


def test_no_folder_holds_more_than_one_can_survey() -> None:
    folders = [folder for room in (*SOURCE, "bench", "tests") for folder in (ROOT / room, *(ROOT / room).rglob("*/"))]
    full = {
        str(folder.relative_to(ROOT)): n for folder in folders if (n := len(list(folder.glob("*.py")))) > MAX_MODULES
    }
    full.pop("storage/migrations/versions", None)  # a list that only grows
    assert not full


def test_no_test_imports_another() -> None:
    files = modules("tests")
    assert not wrong_imports(files, lambda name: is_of(name, "tests") and not is_of(name, "tests.support"))
