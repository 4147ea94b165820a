"""Imports point one way, and the rooms keep what the design says of them."""

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

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


def wrong_imports(room: str, allowed: set[str]) -> list[str]:
    """The imports of other rooms than its own and the allowed ones."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / room).rglob("*.py")
        for name in imports(path)
        if name.startswith("pocketllm.") and name.split(".")[1] not in {room, *allowed}
    ]


def test_imports_point_one_way() -> None:
    assert not [wrong for room, allowed in MAY_IMPORT.items() for wrong in wrong_imports(room, allowed)]


def test_the_engines_floors_import_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for number, floor in enumerate(FLOORS)
        for path in (ROOT / "engine" / floor).glob("*.py")
        for name in imported(ast.walk(ast.parse(path.read_text())))
        if f"{name}.".startswith(tuple(f"pocketllm.engine.{later}." for later in FLOORS[number + 1 :]))
    ]
    assert not wrong


def test_the_learners_modules_import_each_other_in_no_circle_for_types_either() -> None:
    files = {module_of(path): path for room in ("engine", "mezo", "backprop") for path in (ROOT / room).rglob("*.py")}
    found = {name: set(imported(ast.walk(ast.parse(path.read_text())))) for name, path in files.items()}
    TopologicalSorter({name: files.keys() & names for name, names in found.items()}).prepare()


def test_nothing_imports_the_command_line() -> None:
    package = ROOT / "pocketllm"
    files = {*package.glob("*.py"), *package.glob("readers/*.py")} - {package / "__main__.py"}
    assert not [path.name for path in files if any(f"{name}.".startswith("pocketllm.cli.") for name in imports(path))]


def test_no_modules_import_each_other_in_a_circle() -> None:
    files = {module_of(path): path for folder in SOURCE for path in (ROOT / folder).rglob("*.py")}
    TopologicalSorter({module: files.keys() & set(imports(path)) for module, path in files.items()}).prepare()


def module_of(path: Path) -> str:
    """Its name as others import it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in ("pocketllm", *parts[parts[0] == "pocketllm" :]) if part != "__init__")


def test_the_check_sees_a_wrong_import(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("if True:\n    from pocketllm.daemon import gate\n")
    assert list(imports(tmp_path / "x.py")) == ["pocketllm.daemon", "pocketllm.daemon.gate"]


def test_the_daemons_process_imports_no_torch() -> None:
    rooms = [path for room in ("storage", "daemon", "api") for path in (ROOT / room).rglob("*.py")]
    files = [path for path in rooms if str(path.relative_to(ROOT)) not in WITH_TORCH]
    files += [ROOT / name for name in TORCH_FREE] + [ROOT / "pocketllm" / "server.py"]
    heavy = (
        "torch.",
        "transformers.",
        "safetensors.torch.",
        "pocketllm.backprop.",
        "pocketllm.mezo.",
        "pocketllm.engine.streamed.model.",
        "pocketllm.engine.params.lora.",
    )
    wrong = [
        f"{path.name} imports {name}"
        for path in files
        for name in top_level_imports(path)
        if f"{name}.".startswith(heavy)
    ]
    assert not wrong


def test_the_language_server_alone_imports_its_protocol() -> None:
    files = {path for room in SOURCE for path in (ROOT / room).rglob("*.py")} - {ROOT / "pocketllm" / "lsp.py"}
    wrong = [path for path in files for name in imports(path) if name.split(".")[0] in ("pygls", "lsprotocol")]
    assert not wrong


def test_the_learner_is_pure() -> None:
    """No database, no HTTP, no clock of its own."""
    banned = {"sqlite3", "sqlmodel", "sqlalchemy", "fastapi", "httpx", "time"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for room in ("engine", "mezo", "backprop")
        for path in (ROOT / room).rglob("*.py")
        for name in imports(path)
        if name.split(".")[0] in banned
    ]
    assert not wrong


def test_no_folder_holds_more_than_one_can_survey() -> None:
    folders = [folder for room in (*SOURCE, "bench", "tests") for folder in (ROOT / room, *(ROOT / room).rglob("*/"))]
    full = {
        str(folder.relative_to(ROOT)): n for folder in folders if (n := len(list(folder.glob("*.py")))) > MAX_MODULES
    }
    full.pop("storage/migrations/versions", None)  # a list that only grows
    assert not full


def test_no_test_imports_another() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for name in imports(path)
        if name.startswith("tests.") and not name.startswith("tests.support.")
    ]
    assert not wrong
