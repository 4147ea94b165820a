"""Which adapters are served: those whose files are whole, on the weights that they were trained on."""

import shutil

from pocketllm.daemon.adapter_files import AdapterFiles, digest_of
from pocketllm.engine.params.lora import load_adapter
from pocketllm.storage.tables import Adapter
from tests.support.daemon.workers import NOW, Device, changed, notes
from tests.support.models.tiny_models import tiny_model_folder
from tests.support.stored import serve


def served(device: Device) -> Adapter:
    """What a short job has made; it is served."""
    device.add(notes())
    made = device.run(changed(probes=1), steps=2).adapter
    assert made
    serve(device.store, made)
    return device.store.adapters.get(made)


def test_an_adapter_is_served_only_on_the_weights_that_it_was_trained_on(device: Device) -> None:
    trained, folder = served(device), device.folder
    files = AdapterFiles(device.store, folder)
    first = folder.root / "first"
    shutil.move(folder.models / "tiny", first)
    assert files.problem(trained) is None  # nothing to compare with; that there is no model is told elsewhere
    tiny_model_folder(folder.models, seed=1)
    problem = files.problem(trained)
    assert problem and "was trained on other weights of tiny" in problem
    assert files.serving("tiny", NOW) is None and files.notice is not None and problem in files.notice
    shutil.rmtree(folder.models / "tiny")
    shutil.move(first, folder.models / "tiny")
    assert files.problem(trained) is None


def test_an_adapter_that_does_not_say_its_weights_is_served(device: Device) -> None:
    row, folder = served(device), device.folder
    load_adapter(folder.adapter(row.id)).save(folder.adapter(row.id))  # without metadata
    row.sha256 = digest_of(folder.adapter(row.id))
    shutil.rmtree(folder.models / "tiny")
    tiny_model_folder(folder.models, seed=1)
    assert AdapterFiles(device.store, folder).problem(row) is None
