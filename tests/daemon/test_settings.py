"""Settings from the command line, the environment and the file: which wins, and how a bad one is refused."""

import os
from pathlib import Path
from typing import Any

import pytest

from pocketllm.daemon.errors import BadSettings
from pocketllm.daemon.settings import TrainingSettings, load_settings, write_model


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of settings, not yet there, and an environment without any."""
    for name in [name for name in os.environ if name.startswith("POCKETLLM_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "config.toml"
    monkeypatch.setenv("POCKETLLM_CONFIG", str(path))
    return path


def refused(overrides: dict[str, Any] | None = None) -> str:
    """The sentence with which the settings are refused."""
    with pytest.raises(BadSettings) as caught:
        load_settings(overrides or {})
    return str(caught.value)


def test_command_line_over_environment_over_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('port = 1\nlog_level = "error"\n[training]\nsteps = 1\nbatch = 11\nrank = 21\n')
    for name, value in {"PORT": "2", "TRAINING__STEPS": "2", "TRAINING__BATCH": "12"}.items():
        monkeypatch.setenv(f"POCKETLLM_{name}", value)
    settings = load_settings({"port": 3, "training": {"steps": 3}})
    training = settings.training
    assert (settings.port, settings.log_level) == (3, "error")
    assert (training.steps, training.batch, training.rank, training.block_tokens) == (3, 12, 21, 64)


def test_a_list_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLLM_GATE__TRAIN_WHEN_UNKNOWN", '["power", "battery"]')
    assert load_settings({}).gate.train_when_unknown == ("power", "battery")
    monkeypatch.setenv("POCKETLLM_GATE__TRAIN_WHEN_UNKNOWN", "power")
    sentence = refused()
    assert "POCKETLLM_ variable" in sentence and '"gate"' in sentence and "JSON" in sentence


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETLLM_DATA_DIR", "")
    monkeypatch.setenv("POCKETLLM_PORT", "")
    settings = load_settings({})
    assert settings.data_dir.is_absolute()
    assert settings.port == 2407


def test_a_bad_setting_is_named_with_its_value(config: Path) -> None:
    for setting in (
        *("port = -1", "log_level = 'loud'", "tick_seconds = nan", "data_dir = '~nobody-here/x'", "training = 5"),
        *("training.steps = 0", "training.steps = 1.5", "training.targets = []", "training.mode = 'half'"),
        *("gate.battery_stop_percent = nan", "gate.require_power = 3", "gate.hours = ['22:00+02:00-07:00']"),
        # A key that there is not: a typing error must not go unnoticed.
        *("prot = 2407", "training.step = 5"),
    ):
        config.write_text(setting)
        key, _, value = setting.partition(" = ")
        assert f"Setting {key} has the value {value}: " in refused()
    config.write_text("gate.train_when_unknown = ['mood']")
    assert "Setting gate.train_when_unknown.0 has the value 'mood': " in refused()
    config.write_text("[gates]\nrequire_power = false")
    assert "Setting gates has the value {'require_power': False}: " in refused()


def test_all_bad_settings_of_all_sources_are_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text("max_requests = 0")
    monkeypatch.setenv("POCKETLLM_TRAINING__STEPS", "many")
    sentence = refused({"port": 70000})
    for setting in ("max_requests has the value 0", "training.steps has the value 'many'", "port has the value 70000"):
        assert f"Setting {setting}: " in sentence


def test_levels_that_contradict_each_other_are_both_named(config: Path) -> None:
    for start, stop in (("battery_start_percent", "battery_stop_percent"), ("memory_start_bytes", "memory_stop_bytes")):
        config.write_text(f"[gate]\n{start} = 20\n{stop} = 21\n")
        assert f"{stop} (21) is above {start} (20)" in refused().replace(".0", "")
        config.write_text(f"[gate]\n{start} = 20\n{stop} = 20\n")
        assert getattr(load_settings({}).gate, start) == 20
    config.write_text("[gate]\ntemperature_start_celsius = 43\n")
    assert "temperature_start_celsius (43.0) is above temperature_stop_celsius (42" in refused()
    config.write_text("[training]\nmicro_batch = 8\nbatch = 4\n")
    assert "micro_batch (8) is above batch (4)" in refused()


def test_a_file_that_cannot_be_read_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"port = ", b"[gate", b"\xff\xfe", b"port = 1\nport = 2"):
        config.write_bytes(content)
        assert refused().startswith(f"{config} cannot be read: "), content

    # Root may read whatever has only its mode against it; this gives an error to everybody.
    monkeypatch.setenv("POCKETLLM_CONFIG", "/proc/self/mem")
    assert refused().startswith("/proc/self/mem cannot be read: ")


def test_the_home_directory_may_be_written_as_usual(config: Path) -> None:
    config.write_text('data_dir = "~/texts"')
    assert load_settings({}).data_dir == Path.home() / "texts"


@pytest.mark.parametrize(
    ("variables", "data", "config_home"),
    [
        ({}, "home/.local/share", "home/.config"),
        ({"XDG_DATA_HOME": "data"}, "data", "home/.config"),
        ({"XDG_CONFIG_HOME": "config"}, "home/.local/share", "config"),
    ],
)
def test_files_lie_where_the_desktop_standard_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], data: str, config_home: str
) -> None:
    for name in ("POCKETLLM_CONFIG", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in {"HOME": "home", **variables}.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    file = tmp_path / config_home / "pocketllm" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text("port = 77")
    settings = load_settings({})
    assert (settings.data_dir, settings.port) == (tmp_path / data / "pocketllm", 77)


def test_lengths_follow_the_mode_unless_they_are_given(config: Path) -> None:
    adapter, everything = TrainingSettings(), TrainingSettings(mode="full")
    assert everything.step_size < adapter.step_size and everything.epsilon < adapter.epsilon
    config.write_text('[training]\nmode = "full"\n')
    assert load_settings({}).training.step_size == everything.step_size
    config.write_text('[training]\nmode = "full"\nstep_size = 0.5\n')
    assert load_settings({}).training.step_size == 0.5
    config.write_text('[training]\nmode = "half"\n')
    assert refused().count("Setting ") == 1  # not of the lengths, too


def test_a_daemons_settings_win_over_the_shells(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text('[training]\nmode = "full"\n[gate]\nhours = ["22:00-07:00"]\n')
    announced = load_settings({}).model_dump(mode="json")
    config.write_text("[training]\nbatch = 3\n")
    monkeypatch.setenv("POCKETLLM_GATE__REQUIRE_POWER", "false")
    again = load_settings(announced)
    assert (again.training.mode, again.training.batch, again.gate.require_power) == ("full", None, True)
    assert again.model_dump(mode="json") == announced


def use(name: str, **overrides: Any) -> None:
    write_model(load_settings(overrides).model_copy(update={"model": name}))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, 'model = "large"\n'),
        ("# Mine.\nport = 1\n", 'model = "large"\n# Mine.\nport = 1\n'),
        (
            "# Mine.\r\nport = 1\r\nmodel = 'small' # good\r\n[gate]\r\n",
            '# Mine.\r\nport = 1\r\nmodel = "large" # good\r\n[gate]\r\n',
        ),
        ("[training]\nsteps = 5", 'model = "large"\n[training]\nsteps = 5'),
        ('model = "large"\n', 'model = "large"\n'),
    ],
)
def test_a_model_is_written_into_the_file_and_all_else_stays(config: Path, before: str | None, after: str) -> None:
    if before is not None:
        config.write_bytes(before.encode())
    use("large")
    assert config.read_bytes().decode() == after and load_settings({}).model == "large"


def test_a_file_behind_a_link_is_made_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, file = tmp_path / "link.toml", tmp_path / "new" / "folder" / "config.toml"
    link.symlink_to(file)
    monkeypatch.setenv("POCKETLLM_CONFIG", str(link))
    use("large")
    assert link.is_symlink() and file.read_text() == 'model = "large"\n'


def test_a_model_that_would_be_overridden_is_not_written(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.write_text(text := 'model = "small"\n')
    with pytest.raises(BadSettings, match=r"option --model overrides config.toml. Name large there"):
        use("large", model="small")
    monkeypatch.setenv("POCKETLLM_MODEL", "small")
    with pytest.raises(BadSettings, match=r"Nothing was changed: the variable POCKETLLM_MODEL"):
        use("large")
    assert config.read_text() == text


def test_a_file_that_cannot_be_edited_stays_and_the_line_to_write_is_named(config: Path) -> None:
    config.write_text(text := '"model" = "small"\n')
    with pytest.raises(BadSettings, match=r'config.toml was not changed .*Write model = "large" above its first table'):
        use("large")
    assert config.read_text() == text
