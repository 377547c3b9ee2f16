"""Text that is not what its tokens mean is found: in a GGUF file that names another vocabulary, and by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ready_made
from servers import chat_prompts

from aird.evaluation.decoding import BrokenTextError, CheckedClient, check_text
from aird.evaluation.engine import Completion, ServerSettings
from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.engines.transformers import Transformers

TEXT = "Name a kind colour, and explain it."


def completion(tokenizer: Any, text: str, said: str) -> Completion:
    return Completion(said, tuple(tokenizer(text, add_special_tokens=False)["input_ids"]), "stop")


@pytest.mark.parametrize(
    "said",
    [TEXT, f" {TEXT}", f"{TEXT}\n", f"{TEXT}<|im_end|>", f"{TEXT}\ufffd"],
    ids=["same", "space", "line", "special", "half a character"],
)
def test_what_engines_may_write_otherwise(tokenizer: Any, said: str) -> None:
    check_text(tokenizer, completion(tokenizer, TEXT, said), "llama.cpp", "model.gguf")


def test_bytes_that_are_no_whole_character_may_be_put_together_otherwise(tokenizer: Any) -> None:
    """A special token between two bytes of a character: servers leave it out first, and then decode."""
    first, second = tokenizer("é", add_special_tokens=False)["input_ids"][:2]
    start = tokenizer("Name", add_special_tokens=False)["input_ids"]
    ids = (*start, first, tokenizer.convert_tokens_to_ids("<|im_end|>"), second)
    check_text(tokenizer, Completion("Nameé", ids, "stop"), "vLLM", "model")
    check_text(tokenizer, Completion("Name", ids, "stop"), "vLLM", "model")
    with pytest.raises(BrokenTextError):
        check_text(tokenizer, Completion("Nome\ufffd", ids, "stop"), "vLLM", "model")


@pytest.mark.parametrize(
    "said", [TEXT.replace(" ", "Ġ"), TEXT.replace(" ", ""), TEXT[:-4], f"{TEXT} More.", TEXT.lower()]
)
def test_another_text_is_found(tokenizer: Any, said: str) -> None:
    with pytest.raises(BrokenTextError, match=r"^model\.gguf: this file is broken\. llama\.cpp writes ") as caught:
        check_text(tokenizer, completion(tokenizer, TEXT, said), "llama.cpp", "model.gguf")
    assert "explain" not in str(caught.value)  # nothing of an answer but where the two part


def test_an_engine_is_asked_through_the_check(original: Path, tokenizer: Any, tmp_path: Path) -> None:
    prompts = chat_prompts(original)[:4]
    with Transformers().serve(original, ServerSettings(256), tmp_path / "log") as client:
        checked = CheckedClient(client, tokenizer, "model")
        assert checked.complete(prompts, 8) == client.complete(prompts, 8)
        assert checked.token_logprobs([[1, 5, 7]]) == client.token_logprobs([[1, 5, 7]])
        assert checked.name == client.name


@pytest.mark.thorough
def test_a_gguf_file_that_names_another_vocabulary(original: Path, llama_cpp_python: Path, tmp_path: Path) -> None:
    """As converters wrote it: the tokens of a byte-level model under the name of SentencePiece."""
    from aird.models.loading import load_tokenizer

    (tmp_path / "broken").mkdir()
    ready_made.gguf_file(original, tmp_path / "broken/model.gguf", ["Q8_0"], model="llama")
    with LlamaCpp(llama_cpp_python).serve(tmp_path / "broken", ServerSettings(256), tmp_path / "log") as client:
        checked = CheckedClient(client, load_tokenizer(original), "broken/model.gguf")
        with pytest.raises(BrokenTextError, match=r"broken/model\.gguf: this file is broken"):
            checked.complete(chat_prompts(original), 16)
