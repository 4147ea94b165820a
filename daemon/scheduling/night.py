"""How long a job is: as many steps as its text is worth, but no more than fit into the usual night."""

from dataclasses import dataclass
from math import ceil, cos, pi

from pocketllm.engine.planning.memory_model import JobPlan
from pocketllm.storage.tables import Outcome

#: The usual night in seconds, while none is known; and what surely fits into the first one.
UNKNOWN_NIGHT, SURE_NIGHT = 3 * 3600.0, 3600.0
#: What wins about 98 % of what 300 steps win (bench.passes): two passes over a text; of little text, 40 steps.
PASSES, LEAST_WORTH, MAX_STEPS = 2.0, 40, 300
#: The fewest steps that are a job: half of them warm up.
MIN_STEPS = 20
#: A job that this number of nights did not finish ends at the start of the next.
MAX_NIGHTS = 2
#: A job's first steps, whose time is measured; the first alone also reads the weights from the disk.
FIRST_STEPS = 3
#: The time of validation and checkpoints over that of steps, at most.
CHECKS = 0.1
#: Tokens of a word of prose.
TOKENS_A_WORD = 1.35
#: What is won by the morning, in nats per token: the most, and the amount that wins half of it, of exact steps of 512
#: tokens and of MeZO's directions. Fitted to both diaries' curves in bench.learn; only their ratio matters.
_EXACT, _MEZO, _STEP_TOKENS = (0.875, 6.0), (0.4, 500.0), 512


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What a job has ahead of it."""

    words: int = 0  #: of the text to learn; 0: unknown
    seconds: float = UNKNOWN_NIGHT  #: of the usual night
    first: bool = False  #: nothing is served yet


NOT_KNOWN = Ahead()


def worth(steps_a_pass: float, method: str) -> int:
    """The steps that a text is worth. MeZO learns too little in a step for a text to be used up."""
    return MAX_STEPS if method == "mezo" else min(MAX_STEPS, max(LEAST_WORTH, ceil(PASSES * steps_a_pass)))


def most_steps(method: str, *, first: bool) -> int:
    """The most steps of a job. While nothing is served, the rest of a text's worth waits for the verdict on the first
    ones, but not with MeZO, which has proved nothing by then.
    """
    return LEAST_WORTH if first and method == "exact" else MAX_STEPS


def chain_share(made: int, worth: int) -> float:
    """The rate's peak in a job of a chain over that in its first: a cosine, by the steps that the chain has made.

    With the full rate in each, five jobs of 60 steps win 0.93 to 0.97 of what one of 300 wins, with this 0.96 to 0.97
    (bench.split, two diaries, three seeds).
    """
    return (1 + cos(pi * made / max(1, worth))) / 2


def fitting(seconds: float, seconds_per_step: float, *, made: int = 0) -> int:
    """The steps that fit into a time, with validation and checkpoints, and those made before; at least MIN_STEPS."""
    return max(MIN_STEPS, made + int(seconds / (seconds_per_step * (1 + CHECKS))))


def remaining(step: int, total: int | None, *, measured: int = FIRST_STEPS) -> float:
    """The remaining part of a run at a step: 1 for the steps that are measured, on which its total depends."""
    return 1.0 if total is None or step <= min(measured, total) else 1 - (step - 1) / total


def goes_on(worth: int, made: int, *, ended_early: bool, outcome: Outcome) -> bool:
    """Whether another job shall make what is left of a text's worth: where more can be won, and it is worth a job."""
    return not ended_early and worth - made >= MIN_STEPS and outcome in (Outcome.LEARNED, Outcome.TOO_LITTLE)


def estimated_worth(plan: JobPlan, words: int) -> int:
    """The steps that a text with this number of words is worth, by its length alone."""
    tokens = words * TOKENS_A_WORD
    return worth(tokens / (plan.batch * plan.block_tokens), plan.method) if words else MAX_STEPS


def won_by_morning(plan: JobPlan) -> float:
    """About how much a plan's steps win, in nats per token."""
    most, half = _MEZO if plan.method == "mezo" else _EXACT
    amount = plan.steps * (plan.probes if plan.method == "mezo" else plan.batch * plan.block_tokens / _STEP_TOKENS)
    return most * amount / (amount + half)
