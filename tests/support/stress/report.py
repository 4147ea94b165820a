"""What a stress test measures, told as a bench tells it: a table of values and limits, and a last line of JSON."""

import argparse
from dataclasses import dataclass, field
from typing import Any

from bench.common.harness import Limits, finish


@dataclass
class Report:
    """The values of a stress test, and what they may be."""

    name: str
    limits: Limits
    options: argparse.Namespace  #: a bench's; `quick` without --full
    values: dict[str, float | None] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """Whether the sizes are those that prove figures."""
        return not self.options.quick

    def end(self) -> None:
        """Print the values and keep them; fails when one misses its limit."""
        code = finish(self.name, [], values=self.values, limits=self.limits, raw=self.raw, options=self.options)
        assert code == 0, f"{self.name} misses a limit: {self.values}"
