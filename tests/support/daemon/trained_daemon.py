"""A daemon that has learned, and the same weights in the hands of transformers and PEFT."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import openai
import torch
import torch.distributed.tensor  # PEFT expects that transformers has imported it
from peft import PeftModel
from transformers import AutoModelForCausalLM

from pocketllm.engine.formats.importer import import_model
from tests.support.daemon.real_daemon import Daemon, running
from tests.support.daemon.tiny_daemon import SMALL_JOB
from tests.support.models.tiny_models import tiny_llama_folder


@dataclass
class TrainedDaemon:
    """A daemon that has learned once, and the same weights in transformers' hands."""

    daemon: Daemon
    source: Path
    adapter: Path

    @property
    def client(self) -> openai.OpenAI:
        """OpenAI's own, with the owner's token."""
        return openai.OpenAI(base_url=f"{self.daemon.url}/v1", api_key=self.daemon.token)


@contextmanager
def trained_daemon(root: Path) -> Iterator[TrainedDaemon]:
    """One on data of its own, in fp32."""
    source = tiny_llama_folder(root / "source")
    (root / "data").mkdir()
    import_model(str(source), root / "data" / "models", name="tiny", dtype="float32")
    quick = {"TRAINING__NEW_WORDS": "100000", "TRAINING__STEP_SIZE": "0.05", **SMALL_JOB}
    with running(root / "data", MODEL="tiny", **quick) as daemon:
        # With numbers enough that not every held-out block repeats another text.
        notes = [f"Wind {i * 31}, glass {i * 7919}. Mug of tea number {i}." for i in range(300)]
        texts = [{"text": note, "source": "test"} for note in notes]
        assert daemon.client.post("/texts", json=texts).status_code == 201
        # So much is learned that the adapter is served.
        job = daemon.wait_for_job(daemon.start_job(steps=8, seed=1), "succeeded")
        assert job["outcome"] == "learned", job
        yield TrainedDaemon(daemon, source, root / "data" / "adapters" / job["adapter"])


@torch.inference_mode()
def theirs(trained: TrainedDaemon, ids: list[int], *, personal: bool) -> torch.Tensor:
    """(tokens - 1,) log-probabilities of each token after the first."""
    model = AutoModelForCausalLM.from_pretrained(trained.source, dtype=torch.float32).eval()
    if personal:
        model = PeftModel.from_pretrained(model, trained.adapter).eval()
    logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    return logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
