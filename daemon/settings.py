"""Settings: defaults, help and environment names in one table. Read at start from config.toml and the environment."""

import os
import re
import tomllib
from dataclasses import dataclass
from datetime import datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from pocketllm.daemon.errors import BadSettings
from pocketllm.daemon.generation.backend import BackendPreference
from pocketllm.daemon.paths import config_file, default_data_dir, write_private

MB = 10**6


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser().absolute()  # in the file and in a unit's Environment= no shell does it
    except RuntimeError as error:
        raise ValueError("there is no such home directory") from error


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


#: Defaults by mode: all weights take far smaller steps than an adapter's few numbers.
_EPSILON = {"lora": 1e-2, "full": 1e-3}
_STEP_SIZE = {"lora": 3e-3, "full": 1e-4}


class TrainingSettings(_Section):
    """Parameters of a job. A change applies to jobs queued afterwards."""

    new_words: int = Field(
        1000,
        ge=1,
        description="Number of new words at which a job is queued by itself; two fifths of it are enough once the "
        "oldest of them have waited for seven days.",
    )
    steps: Literal["auto"] | Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        "auto", description="Steps per job; auto is what the text is worth, but no more than fit into the usual night."
    )
    method: Literal["auto", "exact", "mezo"] = Field(
        "auto",
        description="exact computes gradients by backpropagation, one layer at a time; mezo estimates them by forward "
        "passes along random directions; auto takes what learns more by the morning: exact if it fits into "
        "memory_bytes, else mezo.",
    )
    batch: int | None = Field(
        None, ge=1, le=1024, description="Blocks of text per step; by default 8, or 4 if mezo takes many directions."
    )
    block_tokens: int = Field(64, ge=2, le=4096, description="Tokens per block.")
    rank: int = Field(8, ge=1, le=256, description="Rank of a new adapter; one that a job continues keeps its rank.")
    mode: Literal["lora", "full"] = Field(
        "lora", description="What is trained: lora a low-rank adapter, full all parameters."
    )
    epsilon: float = Field(
        default_factory=lambda read: _EPSILON[read.get("mode", "lora")],
        gt=0,
        lt=1,
        description="MeZO's perturbation scale; by default 0.01 for lora, 0.001 for full.",
    )
    step_size: float = Field(
        default_factory=lambda read: _STEP_SIZE[read.get("mode", "lora")],
        gt=0,
        lt=1,
        description="MeZO's step per coordinate and direction; by default 0.003 for lora, 0.0001 for full.",
    )
    rate: float = Field(
        2e-3,
        gt=0,
        lt=1,
        description="Learning rate of exact for A on long text; four times that for B, and less on short text.",
    )
    rehearsal: float = Field(
        0.125,
        ge=0,
        le=0.5,
        description="Share of blocks per step of exact that are sampled from the base model, against forgetting.",
    )
    measure_every: int = Field(100, ge=1, description="Steps between held-out measurements.")
    probes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Directions per step of mezo; by default 15 or 7 if such a step takes at most 5 seconds, else 1.",
    )
    noise: Literal["rademacher", "gaussian"] = Field(
        "rademacher", description="Distribution of directions: random signs, or normal numbers as in MeZO's paper."
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Maximum number of blocks of block_tokens per pass through the layers; by default, what memory "
        "allows. exact takes more if blocks are shorter.",
    )
    targets: tuple[str, ...] = Field(
        # Not queries and keys: with them, mezo learns less in the same time (docs/notes.md).
        ("v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "out_proj", "fc1", "fc2", "value", "dense"),
        min_length=1,
        description="Names of the linear maps that mezo adapts; unknown names are ignored. exact adapts all maps.",
    )
    memory_bytes: int = Field(
        360 * MB,
        ge=50 * MB,
        description="Maximum anonymous memory of the worker beyond its libraries; the kernel enforces it.",
    )

    @model_validator(mode="after")
    def _micro_batch_in_batch(self) -> "TrainingSettings":
        if self.micro_batch is not None and self.batch is not None and self.micro_batch > self.batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) is above batch ({self.batch})")
        return self


#: Readings that the gate uses.
Quantity = Literal[
    "power", "plug", "battery", "temperature", "health", "heat", "screen", "idle", "memory", "memory pressure", "disk"
]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
#: The two thresholds of a condition, the higher one first: the one to start is at least as strict as the other.
_IN_ORDER = (
    ("battery_start_percent", "battery_stop_percent"),
    ("memory_start_bytes", "memory_stop_bytes"),
    ("disk_start_bytes", "disk_stop_bytes"),
    ("temperature_stop_celsius", "temperature_start_celsius"),
    ("heat_stop_celsius", "heat_start_celsius"),
    ("pressure_stop_percent", "pressure_start_percent"),
)


@dataclass(frozen=True)
class Hours:
    """A part of the day in local time; it may span midnight."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "Hours":
        """Read "22:00-07:00". Raises ValueError."""
        start, dash, end = text.partition("-")
        try:
            made = cls(*(datetime.strptime(part.strip(), "%H:%M").time() for part in (start, end)))
        except ValueError as error:
            raise ValueError(f"{text!r} is not of the form 22:00-07:00") from error
        if not dash or made.start == made.end:
            raise ValueError(f"{text!r} is not of the form 22:00-07:00, with two different times")
        return made

    def hold(self, at: time) -> bool:
        """Whether this time is within it; the end is exclusive."""
        if self.start < self.end:
            return self.start <= at < self.end
        return at >= self.start or at < self.end


def _as_hours(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        Hours.parse(text)
    return texts


class GateSettings(_Section):
    """Conditions for a job. Of two thresholds, the one to start is stricter, so that jobs do not flap."""

    run_mode: Literal["auto", "always", "never"] = Field(
        "auto",
        description="auto waits for all conditions; always waits only for the safety conditions (heat, memory, disk, "
        "an empty battery); with never, no job runs.",
    )
    require_power: bool = Field(True, description="Train only on external power.")
    power_sources: tuple[Literal["ac", "usb", "wireless", "dock", "another"], ...] = Field(
        ("ac", "usb", "wireless", "dock", "another"), description="Kinds of external power that count."
    )
    battery_start_percent: float = Field(40, ge=0, le=100, description="Start at this battery level or above.")
    battery_stop_percent: float = Field(30, ge=0, le=100, description="Pause below this battery level.")
    charge_loss_percent: float = Field(
        3, gt=0, le=100, description="Pause when the battery loses this much on a charger, which is then too weak."
    )
    temperature_start_celsius: float = Field(38, description="Start at this battery temperature or below.")
    temperature_stop_celsius: float = Field(42, le=60, description="Pause above this battery temperature.")
    heat_start_celsius: float = Field(70, description="Start with the hottest thermal zone at this or below.")
    heat_stop_celsius: float = Field(90, description="Pause with the hottest thermal zone above this.")
    require_screen_off: bool = Field(True, description="Train only while the screen is off.")
    require_idle: bool = Field(True, description="Train only when nobody has used the machine for a while.")
    idle_minutes: float = Field(10, ge=0, le=24 * 60, description="Minutes without use that count as idle.")
    hours: Annotated[tuple[str, ...], AfterValidator(_as_hours)] = Field(
        (), description="Hours in which jobs may run, in local time, such as 22:00-07:00; by default all day."
    )
    weekdays: tuple[Weekday, ...] = Field((), description="Weekdays on which jobs may run; by default all.")
    minutes_per_day: float | None = Field(None, gt=0, description="Maximum minutes of training per day.")
    memory_start_bytes: int = Field(700 * MB, ge=0, description="Start with at least this much available memory.")
    memory_stop_bytes: int = Field(150 * MB, ge=0, description="Pause below this much available memory.")
    pressure_start_percent: float = Field(
        10, ge=0, le=100, description="Start at this memory pressure (time in which work waits for memory) or below."
    )
    pressure_stop_percent: float = Field(40, ge=0, le=100, description="Pause above this memory pressure.")
    disk_start_bytes: int = Field(1000 * MB, ge=0, description="Start with at least this much free disk space.")
    disk_stop_bytes: int = Field(200 * MB, ge=0, description="Pause below this much free disk space.")
    minimum_pause_seconds: float = Field(60, ge=0, description="Minimum seconds to wait after a pause.")
    stale_seconds: float = Field(180, ge=90, description="Age in seconds beyond which a reading counts as unknown.")
    train_when_unknown: tuple[Quantity, ...] = Field(
        (), description="Readings that do not block jobs while they are unknown."
    )

    @model_validator(mode="after")
    def _without_contradictions(self) -> "GateSettings":
        for higher, lower in _IN_ORDER:
            if getattr(self, higher) < getattr(self, lower):
                raise ValueError(f"{lower} ({getattr(self, lower)}) is above {higher} ({getattr(self, higher)})")
        if self.require_power and not self.power_sources:
            raise ValueError("require_power is true, but power_sources is empty: no job could run")
        return self


class Settings(BaseSettings):
    """All settings. Environment names are POCKETLLM_PORT, POCKETLLM_TRAINING__STEPS and so on."""

    model_config = SettingsConfigDict(
        env_prefix="POCKETLLM_",
        env_nested_delimiter="__",
        env_ignore_empty=True,  # an empty data_dir would be the working directory
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    data_dir: Annotated[Path, AfterValidator(_expanded)] = Field(
        default_factory=default_data_dir, description="The folder for texts, models and adapters."
    )
    port: Annotated[int, Field(ge=0, le=65535)] = Field(2407, description="Loopback port; 0 chooses a free one.")
    model: str = Field("smollm2-135m-instruct", description="The imported model that is trained and answers.")
    backend: BackendPreference = Field(
        "auto",
        description="The decoder: transformers; llamacpp, which needs the model's GGUF file and is much faster; or "
        "auto, which is llamacpp if available, else transformers.",
    )
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="debug, info, warning or error.")
    tick_seconds: float = Field(2.0, gt=0, le=5, description="Seconds between sensor readings while a job runs.")
    idle_tick_seconds: float = Field(
        15.0,
        gt=0,
        le=60,
        description="Seconds between sensor readings while a job waits; four times that, at most 60, while none does.",
    )
    total_memory_bytes: int = Field(
        1000 * MB,
        ge=1,
        description="Maximum memory of daemon, worker and generator together; weights count once. A job that does not "
        "fit waits; a generation request that needs more is refused.",
    )
    keep_alive_seconds: float = Field(300, ge=0, description="Seconds after which an idle generator is unloaded.")
    max_text_bytes: int = Field(1 * MB, ge=1, description="Maximum size of a text.")
    max_body_bytes: int = Field(8 * MB, ge=1, description="Maximum size of a request.")
    max_requests: int = Field(64, ge=1, description="Maximum number of simultaneous requests from all apps.")
    app_requests_per_second: float = Field(
        20, gt=0, description="Average requests per second from an app; ten seconds' worth may come at once."
    )
    app_texts_per_day: int = Field(20_000, ge=1, description="Maximum number of texts that an app may add in 24 hours.")
    app_bytes: int = Field(200 * MB, ge=1, description="Maximum size of an app's texts and files, plus 500 bytes each.")
    open_routes: bool = Field(
        True, description="GET /jobs needs no access token. Without one, it shows only states, steps, losses and times."
    )
    allowed_origins: tuple[str, ...] = Field(
        ("app://obsidian.md", "capacitor://localhost", "vscode-webview://"),
        description="Origins of browser-based programs that may send requests, with an access token. One that ends "
        "with :// matches any host.",
    )
    max_waiting: int = Field(
        8, ge=0, description="Maximum number of generation requests that wait while one is answered."
    )
    power_supplies: Path = Field(
        Path("/sys/class/power_supply"), description="The folder of power supplies; change it only for tests."
    )
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings = GateSettings()
    #: Names of those that the command line gave.
    _options: frozenset[str] = frozenset()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Command line over environment over file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config_file())


def load_settings(overrides: dict[str, Any]) -> Settings:
    """Read the settings, `overrides` on top. Raises BadSettings naming each key and its value."""
    try:
        settings = Settings(**overrides)
        settings._options = frozenset(overrides)
        return settings
    except ValidationError as error:
        raise BadSettings(_explain(error)) from error
    except SettingsError as error:  # a list or a table in a variable, and not as JSON
        raise BadSettings(f"A POCKETLLM_ variable cannot be read: {error}. Give lists and tables as JSON.") from error
    except (OSError, ValueError) as error:  # not readable, or TOML that does not parse
        raise BadSettings(f"{config_file()} cannot be read: {error}") from error


def write_model(settings: Settings) -> None:
    """Let config.toml name the model of these settings, and leave all else in it as it is.

    Raises BadSettings, saying what to change, where that is not possible or something else overrides the file.
    """
    file, name = config_file().resolve(), f'"{settings.model}"'
    if "model" in settings._options or os.environ.get("POCKETLLM_MODEL"):
        above = "option --model" if "model" in settings._options else "variable POCKETLLM_MODEL"
        advice = f"Name {settings.model} there, and restart the daemon."
        raise BadSettings(f"Nothing was changed: the {above} overrides config.toml. {advice}")
    try:
        text = file.read_bytes().decode() if file.exists() else ""
        changed = re.sub(r"""(?m)^(model *= *)("[^"\n]*"|'[^'\n]*')""", rf"\g<1>{name}", text, count=1)
        if tomllib.loads(changed) != tomllib.loads(text) | {"model": settings.model}:
            tomllib.loads(changed := f"model = {name}\n{text}")  # refuses a second one
        file.parent.mkdir(parents=True, exist_ok=True)
        write_private(file, changed.encode())
    except (OSError, ValueError) as error:
        advice = f"Write model = {name} above its first table, and restart the daemon."
        raise BadSettings(f"{file} was not changed ({error}). {advice}") from error


def _explain(error: ValidationError) -> str:
    sentences = []
    for problem in error.errors(include_url=False):
        if problem["type"] == "default_factory_not_called" or "literal['auto']" in problem["loc"]:
            continue  # follows from another one, or is the other choice for a number
        key = ".".join(str(part) for part in problem["loc"] if part != "constrained-int") or "settings"
        sentences.append(
            f"Setting {key} has the value {problem['input']!r}: {problem['msg'].removeprefix('Value error, ')}."
        )
    return " ".join(sentences)
