"""An evaluation that a kill has interrupted goes on where it was."""

from pathlib import Path

import pytest
import torch

from pocketllm.daemon.evaluation.held_out import HeldOutEvaluation
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.storage.repositories.step_log import PART_STEP
from tests.support.daemon.workers import new_device, queue_job
from tests.support.models.backpropagation import layers_adapter
from tests.support.models.learning import random_blocks


class Killed(Exception):
    """The worker is gone."""


class Counting(LanguageModel):
    """Counts the batches that it evaluates, and is killed after so many."""

    left, done = 10**9, 0

    def block_losses(self, blocks: Batch, micro_batch: int = 8) -> list[float]:
        if not self.left:
            raise Killed
        self.left, self.done = self.left - 1, self.done + 1
        return super().block_losses(blocks, micro_batch)


@torch.no_grad()
def test_a_killed_evaluation_goes_on_where_it_was(tmp_path: Path, tiny: ModelFolder) -> None:
    with new_device(tmp_path, source=tiny.path) as device:

        def evaluated(*lives: int) -> tuple[list[float], int]:
            """The losses at a step, and the batches that were evaluated, where each worker lives for so many."""
            job, done = queue_job(device.store), 0
            for left in lives:
                model = Counting(tiny, dtype=torch.float32)
                adapter: Adapter = layers_adapter(model)
                model.set_parameters(adapter)
                model.left = left
                held_out = (random_blocks(7, 20), random_blocks(4, 9))
                evaluation = HeldOutEvaluation(
                    folder=device.folder,
                    store=device.store,
                    model=model,
                    held_out=held_out,
                    texts=[str(number) for number in range(11)],
                    old_blocks=(),
                    repeats=[False] * 11,
                    ordinary=None,
                    dtype=torch.float32,
                    micro_batch=2,
                    part_seconds=0.0,
                )
                if left < 10**9:
                    with pytest.raises(Killed):
                        evaluation.evaluate(job, 5, adapter)
                else:
                    evaluation.evaluate(job, 5, adapter)
                done += model.done
            found = device.store.step_log.evaluation(job.id, 5)
            assert found is not None
            return evaluation.paired(found), done

        whole = evaluated(10**9)
        assert evaluated(2, 1, 10**9) == whole == (whole[0], 6)


def test_a_roll_back_forgets_the_part(tmp_path: Path, tiny: ModelFolder) -> None:
    with new_device(tmp_path, source=tiny.path) as device:
        job, log = queue_job(device.store), device.store.step_log
        log.evaluate(job.id, step=PART_STEP, loss=0.0, block_losses={"step 20 a": 1.0}, now=job.created_at)
        assert log.progress(job.id).held_out_loss_now is None and log.curve(job.id).held_out == []
        log.go_back(job.id, step=10, early_stopping={}, ended=False, message=None, now=job.created_at)
        assert log.evaluation(job.id, PART_STEP) is None
