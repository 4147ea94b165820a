"""`pocketllm models`: works without a daemon."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from pocketllm.cli.models import reporting
from pocketllm.cli.program import progress
from pocketllm.engine.formats.importer import ImportProgress
from pocketllm.engine.formats.model_folder import MANIFEST_NAME
from tests.support.daemon.commands import Run, output, terminal
from tests.support.daemon.served import Served
from tests.support.models.tiny_models import edit_json, loud_llama_folder, tiny_llama_folder, tiny_model_folder


def test_import_progress_on_a_terminal_and_in_a_log() -> None:
    console, log = terminal(), Console(file=io.StringIO(), width=100)
    for screen in (console, log):
        with progress(screen) as report:
            show = reporting(report)
            show(ImportProgress("config", 0, 0))
            show(ImportProgress("weights", 5_000_000, 10_000_000))
            show(ImportProgress("weights", 10_000_000, 10_000_000))
    assert "10.0 MB of 10.0 MB" in output(console)
    assert output(log) == "Reading the model's shape...\nCopying the weights... 5.0 MB of 10.0 MB\n"


class TestModels:
    def test_none_yet(self, alone: Run) -> None:
        assert "pocketllm models add" in alone("models").stdout
        assert alone.json("models") == {"data": []}

    @pytest.mark.smoke
    def test_add_and_list(self, alone: Run, tmp_path: Path) -> None:
        source = str(tiny_llama_folder(tmp_path / "source"))
        said = alone("models", "add", source, "--name", "mine").stdout
        assert "Added mine: " in said and "`pocketllm models use mine`" in said
        assert "--replace" in alone.refused("models", "add", source, "--name", "mine")
        replaced = alone.json("models", "add", source, "--name", "mine", "--replace", "--dtype", "float32")
        assert replaced["dtype"] == "float32"
        assert "mine" in alone("models").stdout
        (listed,) = alone.json("models")["data"]
        assert (listed["name"], listed["default"], listed["held_out_losses"]) == ("mine", False, None)
        assert listed["memory_bytes"] > 50_000_000 and listed["seconds_per_step"] > 0 and listed["nights"] > 0

    @pytest.mark.slow
    def test_a_model_is_measured_when_added_and_again_when_replaced(self, alone: Run, tmp_path: Path) -> None:
        source = str(tiny_llama_folder(tmp_path / "source"))
        added = alone.json("models", "add", source, "--name", "mine")
        assert added["calibration"]["gemm_flops"] > 0
        manifest = tmp_path / "nothing" / "models" / "mine" / MANIFEST_NAME
        edit_json(manifest, calibration=added["calibration"] | {"machine": "abacus"}, compute_dtype="float16")
        listed = alone("models").stdout
        assert "mine was measured on abacus" in " ".join(listed.split())
        again = alone.json("models", "add", source, "--name", "mine", "--replace")
        assert again["calibration"].keys() == added["calibration"].keys()
        assert "abacus" not in alone("models").stdout

    @pytest.mark.slow
    def test_a_model_that_cannot_be_measured_is_added_all_the_same(self, alone: Run, tmp_path: Path) -> None:
        source = str(loud_llama_folder(tmp_path / "source", factor=1e30))
        said = alone("models", "add", source, "--name", "mine", "--dtype", "float32").stdout
        assert re.search(r"could not be measured on this device: .*no finite loss.*\nAdded mine: ", said, re.DOTALL)
        (listed,) = alone.json("models")["data"]
        assert (listed["compute_dtype"], listed["calibration"]) == ("float32", None)

    def test_use_names_a_model_for_the_next_daemon(self, alone: Run, tmp_path: Path) -> None:
        for name in ("mine", "other"):
            tiny_model_folder(tmp_path / "nothing" / "models", name=name)
        assert "There is no model 'mien'. Installed: mine, other." in alone.refused("models", "use", "mien")
        used = alone("models", "use", "mine")
        assert (used.exit_code, used.stderr) == (0, "")
        assert "The daemon will use it when it starts." in used.stdout
        assert alone.json("models", "use", "mine") == {"model": "mine", "switched": False}
        listed = alone.json("models")["data"]
        assert [(model["name"], model["default"]) for model in listed] == [("mine", True), ("other", False)]

    def test_use_changes_nothing_where_a_variable_names_the_model(
        self, alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny_model_folder(tmp_path / "nothing" / "models", name="mine")
        monkeypatch.setenv("POCKETLLM_MODEL", "other")
        said = alone.refused("models", "use", "mine")
        assert "POCKETLLM_MODEL overrides config.toml. Name mine there" in said

    def test_use_lets_a_running_daemon_switch(self, run: Run, served: Served) -> None:
        models = served.api.services.folder.models
        shared = models.resolve()
        models.unlink()
        models.mkdir()
        (models / "tiny").symlink_to(shared / "tiny")
        tiny_model_folder(models, name="other")
        used = run("models", "use", "other")
        assert (used.exit_code, used.stderr) == (0, "")
        assert "The daemon uses it from now on." in used.stdout
        assert served.requests == ["POST /models/other/use"]
        assert "other" in run("status").stdout and served.words.model == models / "other"

    def test_what_cannot_be_imported(self, alone: Run, tmp_path: Path) -> None:
        (tmp_path / "weights.bin").write_bytes(b"\x80\x04")
        said = alone.refused("models", "add", str(tmp_path / "weights.bin"))
        assert "Error:" in said and "Traceback" not in said
        said = alone.refused("models", "add", "x.gguf", "--name", "../x", "--json")
        assert "is not a valid model name" in json.loads(said)["detail"]
