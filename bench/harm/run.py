"""A default job on a text, and what it costs the model elsewhere: one run of bench.harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from bench.common.ours import exact_method, load_model, planned, rehearsal_of, rehearsed
from bench.harm.instructions import share_right
from bench.learn import text as learn_text
from bench.learn.curve import Curve
from bench.learn.ours import teach
from pocketllm.daemon.evaluation.held_out import ordinary_text
from pocketllm.engine.data.chats import chat_prompt
from pocketllm.engine.formats.tokenizer import stop_ids_of
from pocketllm.engine.generate.sampling import greedy
from pocketllm.engine.planning.memory_model import exact_passes
from pocketllm.engine.planning.shapes import read_shapes
from pocketllm.engine.streamed.model import LanguageModel

#: Tokens of an answer, at most.
_ANSWER_TOKENS = 24


@torch.no_grad()
def run(folder: str, blocks: str, *, steps: int, batch: int, seed: int, guarded: bool) -> dict[str, Any]:
    """Learn, and measure before and after: losses on held-out and on ordinary text, and the instructions answered.

    guarded: with samples of the base model in the steps.
    """
    division = learn_text.load(blocks)
    plan = planned(Path(folder), mode="exact", batch=batch, tokens=division.training.inputs.shape[1]).plan
    model = load_model(Path(folder))
    samples = rehearsal_of(model, steps * rehearsed(plan)) if guarded else None
    model.set_parameters(None)
    before = _measured(model, division)
    batch = plan.batch - (0 if samples is None else rehearsed(plan))
    method = exact_method(model, plan, seed=seed, samples=samples)
    points = exact_passes(read_shapes(model.folder), plan)
    curve = Curve(1e9, lambda: 0.0)  # only counts the steps
    how: dict[str, Any] = {"seed": seed, "batch": batch, "points": points, "steps": steps}
    taught = teach(model, method, (division.training,), stepped=curve.stepped, **how)
    after = _measured(model, division)
    return {"before": before, "after": after, "best_step": taught.stopping.best_step, "steps": curve.steps}


def _measured(model: LanguageModel, division: learn_text.Division) -> dict[str, float]:
    """Nats per token on both texts, and the instructions answered, per cent; with what the model uses."""
    tokenizer = model.folder.tokenizer()
    ordinary = ordinary_text(tokenizer, is_mlm=False)
    assert ordinary is not None
    found = {"held_out": model.mean_loss([division.held_out]), "ordinary": model.mean_loss([ordinary])}
    stop_ids = stop_ids_of(model.network.config.eos_token_id, tokenizer)

    def answer(question: str) -> str:
        prompt = tokenizer(chat_prompt(tokenizer, [{"role": "user", "content": question}]), add_special_tokens=False)
        ids = prompt["input_ids"]
        assert isinstance(ids, list)
        return str(tokenizer.decode(greedy(model, ids, stop_ids=stop_ids, max_tokens=_ANSWER_TOKENS)))

    return found | {"instructions": share_right(answer)} if tokenizer.chat_template else found
