"""The tokenizer without transformers: in everything that answers need, the same as transformers' own."""

import shutil
from pathlib import Path

import pytest
from jinja2 import TemplateError

from pocketllm.engine.formats.model_folder import ModelFolder, load_tokenizer, open_model_folder
from pocketllm.engine.formats.tokenizer import LeanTokenizer, open_tokenizer, stop_ids_of
from tests.support.models.learning import fresh_process
from tests.support.models.tiny_models import edit_json, tiny_model_folder

TEXTS = ("", "Wind west, rain.", " two  spaces\n\n", "Ærø 😀 漢字 e\u0301", "<|im_start|>user\nHi<|im_end|>")
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say <b>'ä'</b>."},
    {"role": "assistant", "content": "ä"},
]


def lean(folder: Path) -> LeanTokenizer:
    found = LeanTokenizer.open(folder)
    assert found is not None
    return found


def test_texts_tokens_and_vocabulary_are_the_same(tiny: ModelFolder) -> None:
    ours, theirs = lean(tiny.path), tiny.tokenizer()
    for text in TEXTS:
        tokens = ours(text, add_special_tokens=False)["input_ids"]
        assert tokens == theirs(text, add_special_tokens=False)["input_ids"]
        for skip in (True, False):
            assert ours.decode(tokens, skip_special_tokens=skip) == theirs.decode(tokens, skip_special_tokens=skip)
        for cut in range(len(tokens)):  # within characters, too
            assert ours.decode(tokens[:cut]) == theirs.decode(tokens[:cut])
    assert (len(ours), ours.eos_token_id) == (len(theirs), theirs.eos_token_id)
    assert ours.get_vocab() == theirs.get_vocab()
    assert stop_ids_of(2, ours) == stop_ids_of(2, theirs)


def test_a_chat_reads_the_same(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    file = folder / "chat_template.jinja"
    templates = (
        file.read_text(),
        "{{ bos_token }}{% for m in messages %}\n  {%- if loop.last %}{% continue %}{% endif %}{{ m | tojson }}\n"
        "{% endfor %}",
        "{% if tools is none and not documents %}{{ messages[0].content | upper }}{{ eos_token }}{% endif %}\n",
    )
    for template in templates:
        file.write_text(template)
        for answering in (True, False):
            theirs = load_tokenizer(folder).apply_chat_template(CHAT, add_generation_prompt=answering, tokenize=False)
            assert lean(folder).apply_chat_template(CHAT, add_generation_prompt=answering) == theirs, template


def test_a_template_may_refuse_a_chat(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system messages') }}")
    with pytest.raises(TemplateError, match="no system messages"):
        lean(folder).apply_chat_template(CHAT, add_generation_prompt=True)


def test_what_only_transformers_renders_or_tokenizes_is_left_to_it(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    template = (folder / "chat_template.jinja").read_text()
    for other in ("{% generation %}{% endgeneration %}", "{{ strftime_now('%Y') }}"):
        (folder / "chat_template.jinja").write_text(other)
        assert LeanTokenizer.open(folder) is None, other
    (folder / "chat_template.jinja").write_text(template)
    assert LeanTokenizer.open(folder)
    # A class of transformers that is more than its file.
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert LeanTokenizer.open(folder) is None
    assert not isinstance(open_tokenizer(open_model_folder(folder))[0], LeanTokenizer)


def test_decoding_is_the_same_either_way_and_needs_no_torch(tiny: ModelFolder, tmp_path: Path) -> None:
    with_transformers = open_model_folder(Path(shutil.copytree(tiny.path, tmp_path / "tiny")))
    edit_json(with_transformers.path / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    (tokenizer, ours), (other, theirs) = map(open_tokenizer, (tiny, with_transformers))
    assert isinstance(tokenizer, LeanTokenizer) and not isinstance(other, LeanTokenizer)
    assert (ours.stop_ids, ours.context) == (theirs.stop_ids, theirs.context) == (frozenset({0, 2}), 256)
    code = f"""
import sys
from pathlib import Path
from pocketllm.engine.formats.tokenizer import open_tokenizer
from pocketllm.engine.formats.model_folder import open_model_folder
open_tokenizer(open_model_folder(Path({str(tiny.path)!r})))[0]("Wind")
print(sum(name in sys.modules for name in ("torch", "transformers")))
"""
    assert fresh_process(code) == 0
