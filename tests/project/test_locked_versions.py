"""constraints.txt: versions of all that a developer installs, which pyproject.toml admits."""

import tomllib

from packaging.requirements import Requirement

from tests.support.paths import ROOT


def test_each_requirement_is_pinned_to_a_version_that_it_may_have() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {pin.name: pin for pin in map(Requirement, lines)}
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*document["project"]["dependencies"], *document["dependency-groups"]["dev"]]
    for needed in map(Requirement, wanted):
        [pin] = pins[needed.name].specifier
        assert pin.operator == "==" and needed.specifier.contains(pin.version), needed
        assert "+" not in pin.version, "no build of torch's in particular"
