"""The benches work: their frame, what they measure with, their models and peers, and each of them with --quick."""

import json
import math
import re
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from bench import cgroups, measured, peers, textbook
from bench.harness import ROOT, Limit, is_ok, machine, parser, provenance
from bench.measured import MIB, Measurement
from bench.memory import plot as plot_memory
from bench.memory.__main__ import GIB_BYTES, LIMITS, Measured, Result, values_of
from bench.memory.rows import OUR_ROWS, PEER_ROWS, chosen
from bench.ours import Trajectory
from bench.parity import __main__ as parity
from bench.shapes import ensure, write
from pocketllm.daemon.child_environment import child_environment
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.noise import Direction
from pocketllm.engine.streamed.quantization import unpack
from tests.support.tiny_models import mapped

AT_MOST_1 = {"a": Limit(at_most=1)}
WHERE_MEASURABLE = {"a": Limit(at_most=1, where_measurable=True)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench-models")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("limits", "value", "quick", "ok"),
    [
        pytest.param(AT_MOST_1, 1.0, False, True, id="met"),
        pytest.param(AT_MOST_1, 1.1, False, False, id="missed"),
        pytest.param(AT_MOST_1, math.nan, False, False, id="no number"),
        pytest.param(AT_MOST_1, math.inf, False, False, id="infinite"),
        pytest.param(AT_MOST_1, None, False, False, id="not measured"),
        pytest.param(WHERE_MEASURABLE, None, False, True, id="not measurable here"),
        pytest.param(WHERE_MEASURABLE, 2.0, False, False, id="measurable and missed"),
        pytest.param({"a": Limit(at_least=2)}, 1.0, False, False, id="below a lower limit"),
        pytest.param({"a": Limit(at_least=2)}, 3.0, False, True, id="above a lower limit"),
        pytest.param(AT_MOST_1, 9.0, True, True, id="quick proves no figures"),
        pytest.param(AT_MOST_1, None, True, False, id="quick but not measured"),
        pytest.param({"a": Limit(at_most=1, always=True)}, 9.0, True, False, id="quick, but it holds always"),
    ],
)
def test_ok_says_whether_a_limit_is_missed(
    limits: dict[str, Limit], value: float | None, quick: bool, ok: bool
) -> None:
    assert is_ok({"a": value}, limits, quick=quick) is ok


def test_a_limit_is_an_upper_or_a_lower_one() -> None:
    with pytest.raises(ValueError, match="either"):
        Limit()
    with pytest.raises(ValueError, match="either"):
        Limit(at_most=1, at_least=1)


def test_the_machine_is_described_without_saying_whose_it_is() -> None:
    description = machine()
    assert description["cores"] and description["memory_bytes"] and description["torch"] != "absent"
    assert socket.gethostname() not in description.values()
    assert not any(str(value).startswith("/") for value in description.values())


def test_results_tell_what_they_were_measured_on_without_paths() -> None:
    options = parser("bench.some", "").parse_args(["--results", "/a/b"])
    options.text = [Path("/home/somebody/diary.txt")]
    found = provenance(options)
    assert found["arguments"] == {"quick": False, "text": ["diary.txt"]}
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|unknown", found["commit"])
    assert datetime.fromisoformat(found["date"]).tzinfo is not None


def test_measures_a_process_by_its_own_report_and_the_kernels() -> None:
    code = (
        "from bench.child import memory_of, write_line\n"
        "held = b'x' * (64 << 20)\n"
        "write_line({'peak_anonymous_bytes': memory_of()['RssAnon'], 'n': 3})"
    )
    found = measured.run(python(code))
    assert found.completed and found.report["n"] == 3 and not found.timed_out
    assert found.peak_rss_bytes > found.peak_anonymous_bytes > 64 * MIB


def test_a_failed_process_is_told_by_its_last_words() -> None:
    found = measured.run(python("raise SystemExit('it broke')"))
    assert (found.completed, found.exit_code, found.error, found.report) == (False, 1, "it broke", {})


def test_a_process_that_makes_no_headway_is_ended() -> None:
    found = measured.run(python("while True: pass"), timeout_seconds=0.1)
    assert found.timed_out and found.exit_code == -9


needs_cgroups = pytest.mark.skipif(not cgroups.can_limit(), reason="memory cgroups cannot be written here")


@needs_cgroups
def test_a_hard_limit_is_the_kernels() -> None:
    grows = python("x = bytearray(b'x') * (300 << 20); print('{}')")
    assert measured.run(grows, limit_bytes=64 * MIB).exit_code == -9
    within = measured.run(grows, limit_bytes=512 * MIB)
    assert within.completed and within.limit_bytes == 512 * MIB
    assert within.group_peak_bytes is None or within.group_peak_bytes > 300 * MIB


@needs_cgroups
def test_a_group_goes_away_with_its_process() -> None:
    with cgroups.limited(64 * MIB) as group:
        assert group.folder.is_dir()
    assert not group.folder.exists()


def test_the_smallest_limit_is_found_by_halving() -> None:
    tried = []

    def completes(limit: int) -> bool:
        tried.append(limit)
        return limit >= 463 * MIB

    found = measured.smallest_limit(completes, floor=200 * MIB, ceiling=1024 * MIB)
    assert found is not None and 463 * MIB <= found < (463 + 16) * MIB
    assert len(tried) == 7


def test_no_limit_is_found_when_the_highest_is_too_low() -> None:
    assert measured.smallest_limit(lambda _: False, floor=0, ceiling=64 * MIB) is None


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("shape", ["opt-tiny", "roberta-tiny", "llama-tiny"])
def test_a_shape_is_a_whole_native_model(models: Path, shape: str, dtype: str) -> None:
    model_folder = open_model_folder(write(models, shape, dtype), verify=True)
    assert model_folder.manifest.dtype == dtype
    tensors = mapped(model_folder)
    name = next(
        name for name in tensors if name.endswith(("fc1.weight", "up_proj.weight", "intermediate.dense.weight"))
    )
    if dtype == "bfloat16":
        dense = tensors[name].float()
    else:
        parts = {found.removeprefix(name): tensor for found, tensor in tensors.items() if found.startswith(name)}
        columns = parts[""].shape[1] * (2 if dtype == "int4" else 1)
        dense = unpack(parts, torch.empty(len(parts[""]), columns))
    assert dense.std().item() == pytest.approx(0.02, rel=0.05)
    assert dense.mean().item() == pytest.approx(0, abs=0.002)


def test_a_model_that_is_there_is_used_again(models: Path) -> None:
    folder = write(models, "opt-tiny", "float32")
    before = (folder / "pocketllm.json").stat().st_mtime_ns
    assert ensure(models, "opt-tiny", "float32") == folder
    assert (folder / "pocketllm.json").stat().st_mtime_ns == before


def test_a_micro_batch_changes_nothing_but_memory() -> None:
    model = peers.build("llama-tiny").float()
    batch = peers.random_batch(model, batch=5, tokens=8)
    whole, parts = peers.forward_step(model, batch, 5)(), peers.forward_step(model, batch, 2)()
    assert parts == pytest.approx(whole, rel=1e-5)


def test_the_textbook_step_comes_back_to_where_it_was_but_for_the_update() -> None:
    model = peers.build("llama-tiny").float()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    peers.textbook_step(model, peers.random_batch(model, batch=2, tokens=8), 2)()
    moved = [(new.detach() - old).abs().max() for new, old in zip(model.parameters(), before, strict=True)]
    assert 0 < max(moved) < peers.EPSILON / 10


def run_module(module: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and last line of a bench or a part of one."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=child_environment(), check=False)
    assert done.stdout, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return done.returncode, last


@pytest.mark.slow
def test_peers_run_without_our_import_shims() -> None:
    code = "import sys, bench.learn.peers, bench.step.floor; print('pocketllm.engine.import_shim' in sys.modules)"
    assert subprocess.check_output(python(code), cwd=ROOT).strip() == b"False"


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["opt-tiny", "roberta-tiny"])
def test_the_exact_lora_peer_learns(shape: str) -> None:
    work = ("--batch", "4", "--tokens", "8", "--micro-batch", "2", "--checkpointing", "--steps", "2")
    code, report = run_module("bench.peers", "lora", "--shape", shape, *work)
    assert code == 0 and report["died_bytes"] is None
    assert len(report["seconds"]) == 2 and 0 < report["loss"] < 7


@pytest.mark.slow
def test_a_peer_that_is_refused_memory_says_how_large_it_was() -> None:
    code, report = run_module(
        "bench.peers", "adam", "--shape", "opt-tiny", "--batch", "4096", "--tokens", "128", "--cap-gb", "1"
    )
    assert code == 0 and report["died_bytes"] > 0 and report["died_because"]


def test_the_textbooks_scalar_is_the_slope_along_z(models: Path) -> None:
    folder = write(models, "llama-tiny", "float32")
    names = [name for name, _ in peers.build("llama-tiny").named_parameters()]
    ids = torch.arange(2 * 9).view(2, 9)
    inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def z(seed: int, step: int, tensor: int, shape: tuple[int, ...]) -> textbook.Array:
        drawn = Direction(seed=seed, step=step, kind="gaussian").of(tensor, shape, torch.float64)
        array: textbook.Array = drawn.numpy()
        return array

    def train(**settings: float) -> textbook.Run:
        return textbook.train(folder, inputs, targets, names=names, noise=z, steps=1, seed=3, **settings)

    run = train(epsilon=1e-4, rate=0.5)
    ((loss_plus, loss_minus),) = run.losses
    scalar = (loss_plus - loss_minus) / 2e-4
    for number, (name, start) in enumerate(run.start.items()):
        step = run.parameters[name] - start
        assert step == pytest.approx(-0.5 * scalar * z(3, 1, number, start.shape), rel=1e-6, abs=1e-9)
    # Half the distance, the same slope: it is a derivative.
    ((closer_plus, closer_minus),) = train(epsilon=5e-5, rate=0.5).losses
    assert (closer_plus - closer_minus) / 1e-4 == pytest.approx(scalar, rel=1e-2)


def test_a_run_that_differs_from_the_textbooks_shows() -> None:
    start, end = {"w": torch.ones(4).double().numpy()}, {"w": torch.full((4,), 1.1).double().numpy()}
    reference = textbook.Run(losses=[(2.0, 2.0)], start=start, parameters=end)
    same = parity.compare(Trajectory(losses=[(2.0, 2.0)], parameters=end), reference)
    assert same.worst == 0 and same.moved == pytest.approx(0.1)
    other = parity.compare(Trajectory(losses=[(2.0, 2.1)], parameters={"w": end["w"] * 1.01}), reference)
    assert other.losses == pytest.approx(0.05) and other.parameters == pytest.approx(0.01)


def test_rows_are_chosen_by_pattern() -> None:
    assert chosen(None, skip_peers=False, quick=False) == [*OUR_ROWS, *PEER_ROWS]
    assert {row.key for row in chosen(["roberta_lora*"], skip_peers=True, quick=False)} == {
        f"roberta_lora_bs{n}" for n in (8, 16, 32, 64)
    }
    with pytest.raises(ValueError, match="'opt14'"):
        chosen(["opt14"], skip_peers=False, quick=False)


def measured_row(key: str, peak_mb: int, *, exit_code: int = 0, fits: bool | None = None) -> Measured:
    free = Measurement(
        exit_code=exit_code,
        seconds=1,
        peak_rss_bytes=peak_mb * 10**6,
        peak_anonymous_bytes=100 * 10**6,
        report={"predicted_bytes": 110 * 10**6} if exit_code == 0 else {},
        error="",
        timed_out=False,
    )
    (row,) = chosen([key], skip_peers=False, quick=False)
    found = Result(row=row, free=free, fits_1gib=fits, smallest_limit_bytes=400 * 10**6 if fits else None)
    return found.to_json()


def test_every_value_of_the_memory_bench_comes_from_its_rows() -> None:
    values = values_of([measured_row(row.key, 100, fits=True if row.under_limit else None) for row in OUR_ROWS])
    assert values.keys() >= LIMITS.keys()
    assert values["opt13_smallest_cgroup_mb"] == 400 and values["opt13_bs64_over_bs8"] == 1
    assert values["llama7b_cgroup_mb"] == pytest.approx(GIB_BYTES / 1e6, abs=0.1)
    assert values["predicted_error_worst"] == pytest.approx(0.1)


def test_too_little_is_told_from_not_measured() -> None:
    assert values_of([measured_row("opt13_lora_bs8", 100, fits=None)])["opt13_smallest_cgroup_mb"] is None
    assert values_of([measured_row("opt13_lora_bs8", 100, fits=False)])["opt13_smallest_cgroup_mb"] == math.inf
    failed = values_of([measured_row("llama7b", 100, exit_code=1)])
    assert failed["llama7b_peak_mb"] is None and failed["predicted_error_worst"] is None


def test_the_plot_shows_memory_against_batch_size(tmp_path: Path) -> None:
    rows = []
    for key, peak in [("roberta_lora_bs8", 400), ("roberta_lora_bs64", 410), ("roberta_backprop_bs8", 1900)]:
        rows.append(measured_row(key, peak))
    rows += [measured_row("roberta_adam_bs8", 3600), measured_row("roberta_adam_bs64", 17_900, exit_code=-9)]
    source, target = tmp_path / "memory.json", tmp_path / "out" / "memory.svg"
    source.write_text(json.dumps({"machine": {"cpu": "A & B", "cores": 2}, "raw": rows}))
    assert plot_memory.main([str(source), "-o", str(target)]) == 0
    drawn = ElementTree.fromstring(target.read_text())
    assert drawn[0].attrib["fill"] == "#ffffff"
    words = [element.text for element in drawn.iter() if element.text]
    assert {"0.41", "1.90", "died at 17.9", "8", "64", "bench.memory on A & B, 2 cores"} <= set(words)


def test_a_plot_needs_results(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"memory\.json"):
        plot_memory.main([str(tmp_path / "memory.json")])
    (tmp_path / "memory.json").write_text('{"raw": []}')
    with pytest.raises(SystemExit, match=r"run `python -m bench\.memory`"):
        plot_memory.main([str(tmp_path / "memory.json")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "arguments", "names"),
    [
        (
            "memory",
            ["--rows", "opt13_lora_bs8", "opt13_exact_bs8", "smollm2_directions", "opt13_int8_bs8"],
            {"opt13_lora_bs8_peak_mb", "opt13_exact_bs8_peak_mb", "opt13_int8_bs8_peak_mb"},
        ),
        ("parity", [], {"trajectory_rel_error", "gradient_worst_cosine", "int8_loss_delta", "int4_loss_delta"}),
        (
            "learn",
            ["--seeds", "2"],
            {"exact_nats", "mezo_nats", "textbook_nats", "peer_nats", "prompt256_nats", "prompt960_nats"}
            | {"exact_peak_over_peer", "exact_peak_over_checkpointed", "samples_seconds"},
        ),
        ("harm", [], {"ordinary_rise", "gain_kept", "nats_won"}),
        ("year", ["--seed", "0", "1"], {"violation_s", "flaps", "unexplained_pauses", "eligible_used", "wall_s"}),
        (
            "phone",
            [],
            {"first_start_s_after_plug", "violation_s", "eligible_used", "wakeups_per_hour_idle", "second_supervisor"},
        ),
        ("pause", [], {"worst_unplug_to_exit_s", "worst_plug_to_worker_s", "worker_peak_mb", "bit_equal"}),
        ("idle", [], {"cpu_percent", "wakeups_a_minute", "memory_mb"}),
        ("siege", [], {"owner_p99_s", "refused_owner", "memory_growth_mb"}),
        ("promotion", [], {"false_learned", "false_forgets", "power_400", "power_1000", "power_4000"}),
        ("forget", [], {"files_with_bytes", "completion_over_never_seen", "seconds_to_safe_serving"}),
        ("faults", [], {"lost_adapter_damaged", "recovered_adapter_damaged", "recovered_database_damaged"}),
        ("soak", [], {"lost", "stuck_jobs", "errors_5xx", "memory_growth_mb", "descriptors_growth"}),
        ("crash", [], {"lost", "duplicated", "bit_equal", "integrity_ok", "stuck_jobs", "restart_s"}),
        (
            "load",
            [],
            {"ingest_over_bare", "jobs_p99_over_idle_p50", "errors_5xx", "lost", "decode_over_transformers"}
            | {"first_token_warm_s", "first_token_cold_s"},  # llama.cpp has no file of the tiny model
        ),
        ("tasks", ["--seeds", "1"], {"zero_shot", "probe", "textbook", "mezo", "autograd", "exact", "samples_seconds"}),
        (
            "step",
            [],
            {"lora_over_two_forwards", "lora_over_floor", "lora_over_autograd", "directions_over_floor", "load_s"}
            | {"full_over_two_forwards", "exact_over_floor", "exact_over_autograd", "directions_over_autograd"},
        ),
    ],
)
def test_the_last_line_is_for_machines(
    bench: str, arguments: list[str], names: set[str], models: Path, tmp_path: Path
) -> None:
    kept = [] if bench in ("year", "promotion") else ["--models", str(models)]
    options = ["--quick", *kept, "--results", str(tmp_path), *arguments]
    code, last = run_module(f"bench.{bench}", *options)
    assert (code, last["ok"], last["bench"], last["quick"]) == (0, True, {"tasks": "sst2"}.get(bench, bench), True)
    always = {"bench", "commit", "date", "arguments", "machine", "values", "limits", "ok", "quick"}
    assert last.keys() - {"at_least"} == always
    assert {name for name, value in last["values"].items() if value is not None} >= names
    assert json.loads((tmp_path / f"{last['bench']}-quick.json").read_text())["values"] == last["values"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "names"),
    [
        ("keys", {"top3_gain", "gain/counts 300", "keystrokes_saved_gain", "suggest_p99_ms_training"}),
        ("recall", {"recall_over_base_nats", "recall_and_adapter_over_adapter_nats", "found_at_5"}),
    ],
)
def test_benches_of_a_writer(bench: str, names: set[str], models: Path, tmp_path: Path) -> None:
    text = "\n\n".join(f"{number} wind west rain mugs" for number in range(150))  # short, as the tiny model's context
    (tmp_path / "writer.txt").write_text(text, encoding="utf-8")
    (tmp_path / "words.txt").write_text("wind\nwest\nrain\nmugs\n", encoding="utf-8")
    options = ["--quick", "--models", str(models), "--results", str(tmp_path), "--text", str(tmp_path / "writer.txt")]
    code, last = run_module(f"bench.{bench}", *options, "--words", str(tmp_path / "words.txt"))
    assert code == 0 and last["values"].keys() >= names


@pytest.mark.slow
def test_the_bench_of_a_few_labels(models: Path, tmp_path: Path) -> None:
    (data := tmp_path / "sst2").mkdir()
    words = {1: "fine sweet warm kind", 0: "dull loud cold sad"}
    rows = [f"a {word} film\t{label}" for label in words for word in words[label].split()]
    for name in ("train.tsv", "dev.tsv"):
        (data / name).write_text("\n".join(["sentence\tlabel", *rows, ""]), encoding="utf-8")
    writer = tmp_path / "writer.txt"
    writer.write_text("\n\n".join(f"On {day} the wind was in the west, and it rained." for day in range(150)))
    options = ["--quick", "--models", str(models), "--results", str(tmp_path), "--data", str(data), "--seeds", "1"]
    code, last = run_module("bench.tasks.labels", *options, "--text", str(writer), str(writer))
    assert code == 0 and last["values"].keys() >= {"labels_personal", "labels_probe", "labels_base", "first_answer_s"}
