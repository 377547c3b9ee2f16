"""Wrappers of vision and language: the text model is taken out, says what the wrapper says, and can be edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from thinking_templates import PARTS
from tiny_model import changed_tensors, configured, new
from wrappers import WRAPPERS, write_wrapper

from aird.models.blocks import ArchitectureError
from aird.models.checkpoint import read_checkpoint
from aird.models.importing import import_model, write_text_model
from aird.models.loading import load_model, load_tokenizer
from aird.models.structure import writer_contributions
from aird.prompts.chat import chat_text
from aird.support.files import write_json


@pytest.mark.parametrize("family", WRAPPERS)
def test_the_text_model_says_what_its_wrapper_says(family: str, original: Path, tmp_path: Path) -> None:
    wrapper = write_wrapper(family, original, tmp_path / "source")
    target = new(tmp_path / "target")
    record = import_model(tmp_path / "source", target, "float32")
    assert record is not None and record["type"] == family
    assert wrapper.get_submodule(record["text_model"]) is wrapper.get_decoder()
    model = load_model(target, dtype=torch.float32)
    assert type(model).__name__ == WRAPPERS[family][1]
    ids = torch.arange(5, 45).unsqueeze(0)  # beyond a sliding window
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, wrapper(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    # What is edited later has its stored name, and no image processor is left for a server to find.
    stored = read_checkpoint(target).tensors
    assert all(f"{writer}.weight" in stored for writer in writer_contributions(model))
    assert not (target / "preprocessor_config.json").exists()


def test_a_template_of_a_processor_becomes_the_tokenizers(original: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", new(tmp_path / "target")
    write_wrapper("llava", original, source)
    template = load_tokenizer(source).chat_template
    (source / "chat_template.jinja").unlink()
    write_json(source / "chat_template.json", {"chat_template": template})
    import_model(source, target, "float32")
    assert load_tokenizer(target).chat_template == template


def test_a_processors_template_of_parts(original: Path, tmp_path: Path) -> None:
    """Of an instruction as a text it writes nothing, and all prompts were the same."""
    source, target = tmp_path / "source", new(tmp_path / "target")
    write_wrapper("smolvlm", original, source)
    (source / "chat_template.jinja").write_text(PARTS, encoding="utf-8")
    import_model(source, target, "float32")
    prompts = [chat_text(load_tokenizer(each), "Name a colour.") for each in (target, original)]
    assert prompts[0] == prompts[1] and "Name a colour." in prompts[0]


def test_a_text_model_that_differs_is_refused(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotary embedding with another base is no sameness on texts."""
    source, target = tmp_path / "source", new(tmp_path / "target")
    write_wrapper("qwen2_5_vl", original, source)
    monkeypatch.setattr("aird.models.text_model.IMAGE_POSITIONS", ("mrope_section", "rope_theta"))
    with pytest.raises(ArchitectureError, match=r"Qwen2ForCausalLM with the weights of its text model differs"):
        import_model(source, target, "float32")


def test_a_quantised_wrapper_is_refused(original: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", new(tmp_path / "target")
    write_wrapper("llava", original, source)
    configured(source, quantization_config={"quant_method": "compressed-tensors"})
    with pytest.raises(ArchitectureError, match="wraps a quantised text model"):
        write_text_model(source, target, False)
    with pytest.raises(ValueError, match="the model is quantised already, by compressed-tensors"):
        import_model(source, target, "float32")


def test_a_wrapper_with_a_broken_weight_is_refused(original: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", new(tmp_path / "target")
    write_wrapper("llava", original, source)
    with changed_tensors(source) as tensors:
        tensors[next(name for name in tensors if name.endswith("self_attn.o_proj.weight"))][0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN|differs"):
        import_model(source, target, "float32")
