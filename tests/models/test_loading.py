"""Importing a model: what is broken is named before any job works with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ready_made
import torch
from models.families import tiny_family
from project import run_script
from safetensors.torch import load_file, save_file
from thinking_templates import DEEPSEEK, QWEN
from tiny_model import (
    changed_tensors,
    configured,
    logits_of,
    new,
    tiny_tuning,
    with_adapter_inside,
    with_mistrals_files,
    with_own_code,
    with_tokenizer_class,
)
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from aird.compression.compress import compress
from aird.compression.ready_made import import_given
from aird.compression.recipes.round_to_nearest import RoundToNearest
from aird.inference.cpu_attention import needed_attention
from aird.inference.generation import generate
from aird.inference.packing import last_logits, plan_packs
from aird.models import importing, loading
from aird.models.checkpoint import read_checkpoint
from aird.models.dense import write_dense_copy
from aird.models.importing import import_model
from aird.models.loading import (
    CHAT_FILE,
    code_is_trusted,
    copy_description,
    load_model,
    load_structure,
    load_tokenizer,
    open_checkpoint,
    read_chat,
    use_chat,
    write_chat,
)
from aird.models.structure import residual_writers
from aird.models.tuning import tune_to_refuse
from aird.prompts.chat import chat_settings, chat_tokens
from aird.settings.models import Chat, Thinking
from aird.support.files import hash_folder, read_json, write_json


@pytest.fixture
def source(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "source"))


def imported(source: Path, tmp_path: Path) -> Path:
    target = new(tmp_path / "target")
    import_model(source, target, "bfloat16")
    return target


def test_a_folder_is_copied_bit_by_bit(source: Path, tmp_path: Path) -> None:
    target = imported(source, tmp_path)
    assert (target / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_the_structure_is_proven_in_float32_whatever_a_processor_computes_in(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "compute_dtype", lambda checkpoint: torch.bfloat16)
    proven = []

    def seen(model: Any) -> Any:
        proven.append(next(model.parameters()))
        return residual_writers(model)

    monkeypatch.setattr(importing, "residual_writers", seen)
    imported(source, tmp_path)
    assert {parameter.dtype for parameter in proven if not parameter.is_meta} == {torch.float32}


def test_a_quantised_model_is_no_original(source: Path, tmp_path: Path) -> None:
    compress(source, tmp_path / "int4", RoundToNearest(weight_bits=4, group_size=64), None)
    with pytest.raises(ValueError, match="quantised already, by compressed-tensors.*recipe: given"):
        imported(tmp_path / "int4", tmp_path)
    assert not list((tmp_path / "target").iterdir())


def test_truncated_weights(source: Path, tmp_path: Path) -> None:
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"source: model.safetensors is truncated or altered .*; fetch it again"):
        imported(source, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(source: Path, tmp_path: Path, value: float) -> None:
    with changed_tensors(source) as tensors:
        name = next(name for name in tensors if name.endswith("down_proj.weight"))
        tensors[name][3, 1] = value
    with pytest.raises(ValueError, match=f"source: tensor {name} of model.safetensors holds NaN or infinite"):
        imported(source, tmp_path)


def test_a_shard_without_its_tensors(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    index = {
        "metadata": {},
        "weight_map": {**dict.fromkeys(tensors, "model.safetensors"), "absent": "model.safetensors"},
    }
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lists absent .*no shard holds it"):
        imported(source, tmp_path)


def test_an_index_that_was_left_beside_whole_weights(source: Path, tmp_path: Path) -> None:
    """Transformers would read the one, vLLM and the measurements the other; an index of the file itself is none."""
    tensors = load_file(source / "model.safetensors")
    index = source / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert read_checkpoint(source).tensors.keys() == tensors.keys()
    save_file(tensors, source / "model-00001-of-00001.safetensors", {"format": "pt"})
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}))
    with pytest.raises(ValueError, match=r"beside it model.safetensors.index.json.*; remove model.safetensors.index"):
        imported(source, tmp_path)
    (source / "model.safetensors").unlink()
    assert read_checkpoint(source).weight_files == [source / "model-00001-of-00001.safetensors"]


@pytest.mark.parametrize("name", ["../outside.safetensors", "inside/a.safetensors", "/tmp/a.safetensors", "..", ""])
def test_an_index_that_names_a_file_elsewhere(source: Path, tmp_path: Path, name: str) -> None:
    """A stranger's checkpoint is its own folder, and reads no other file of this machine."""
    tensors = load_file(source / "model.safetensors")
    (source / "inside").mkdir()
    for place in (source / "model-00001-of-00001.safetensors", source / "inside/a.safetensors"):
        save_file(tensors, place, {"format": "pt"})
    shutil.move(source / "model.safetensors", tmp_path / "outside.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    write_json(source / "model.safetensors.index.json", index)
    with pytest.raises(ValueError, match=f"model.safetensors.index.json names the file {name}, and .* beside their"):
        imported(source, tmp_path)


def test_mistrals_own_files_stay_behind(source: Path, tmp_path: Path) -> None:
    """VLLM would read them and nothing else; where nothing else is there, that is said."""
    names = hash_folder(source).keys()
    with_mistrals_files(source)
    assert hash_folder(imported(source, tmp_path)).keys() == names
    (source / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no \*.safetensors file"):
        imported(source, new(tmp_path / "other"))


def test_an_adapter_inside_a_model_is_refused(source: Path, tmp_path: Path) -> None:
    """Transformers would put it on the model in silence, and give random values to a weight that is missing."""
    plain = logits_of(load_model(source))
    with_adapter_inside(source)
    assert not torch.equal(logits_of(load_model(source)), plain)
    message = r"source holds an adapter beside the model \(adapter_config.json\).*; merge it into the weights, or move"
    with pytest.raises(ValueError, match=message):
        imported(source, tmp_path)


def test_weights_that_only_transformers_would_read(source: Path, original: Path, tmp_path: Path) -> None:
    """Of an original, of a ready-made checkpoint, and of whatever else is read."""
    with changed_tensors(source) as tensors:
        save_file(
            {name: tensor * 0.5 for name, tensor in tensors.items()}, source / "other.safetensors", {"format": "pt"}
        )
    configured(source, transformers_weights="other.safetensors")
    plain, other = (logits_of(load_model(folder)) for folder in (original, source))
    assert not torch.equal(plain, other)
    message = "names a file of weights in its config.json .*; take the key out"
    for read in (
        lambda: imported(source, tmp_path),
        lambda: import_given(source, original, tmp_path / "given"),
        lambda: read_checkpoint(source),
    ):
        with pytest.raises(ValueError, match=message):
            read()


def damaged() -> dict[str, tuple[str, bytes, str]]:
    """Return files of a model's folder that say what none can say, and the errors."""
    index = "model.safetensors.index.json"

    def header(content: str) -> bytes:
        return len(content).to_bytes(8, "little") + content.encode()

    return {
        "an empty configuration": ("config.json", b"", "source/config.json is no JSON"),
        "a list as configuration": ("config.json", b"[]", "source has a config.json that is no JSON object"),
        "another format's name": (
            "config.json",
            b'{"quantization_config": "gptq"}',
            "source has a `quantization_config` in its config.json that is no JSON object",
        ),
        "an index of nothing": (index, b"{}", f"{index} has no `weight_map` that gives each tensor its file"),
        "a list as index": (index, b"[]", f"{index} has no `weight_map`"),
        "a shard that is a number": (index, b'{"weight_map": {"a": 1}}', f"{index} has no `weight_map`"),
        "a list as header": ("model.safetensors", header("[]"), "model.safetensors is truncated or altered"),
        "a tensor of nothing": ("model.safetensors", header('{"a": {}}'), "model.safetensors is truncated or altered"),
        "no weights at all": ("model.safetensors", b"", "model.safetensors is truncated or altered"),
        "an end that is text": ("generation_config.json", b'{"eos_token_id": "x"}', "eos_token_id is 'x'; write the"),
        "a list as settings": ("generation_config.json", b"[]", "generation_config.json is no JSON object"),
        "an empty tokenizer": ("tokenizer.json", b"", "holds a file of its tokenizer that is no JSON"),
    }


@pytest.mark.parametrize("name", damaged())
def test_odd_files_are_named(name: str, source: Path, tmp_path: Path) -> None:
    file, content, message = damaged()[name]
    (source / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        imported(source, tmp_path)


def test_pickled_weights_are_not_read(source: Path, tmp_path: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(tensors, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no \*.safetensors file"):
        imported(source, tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_truncated_gguf(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "model.gguf"
    ready_made.gguf_of_one_tensor(path, "llama")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=r"model.gguf cannot be read as a GGUF model .*; fetch it again"):
        imported(path, tmp_path)


def test_blocks_that_aird_cannot_edit(source: Path, tmp_path: Path) -> None:
    """GPT-2's blocks end in layers that are not linear modules: said at the import, not hours later."""
    config = GPT2Config(vocab_size=512, n_embd=64, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(source)
    with pytest.raises(
        ValueError, match=r"no matrix of this model can be edited: transformer\.h\.0\.attn\.c_proj \(Conv1D\)"
    ):
        imported(source, tmp_path)


@pytest.fixture
def with_code(source: Path) -> Path:
    """Return a model folder that needs its own code."""
    return with_own_code(source)


def test_code_of_a_model_runs_only_where_it_is_trusted(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source needs modelling code of its own; .* trust_remote_code: true"):
        imported(with_code, tmp_path)
    assert not list((tmp_path / "target").glob("*.py"))
    assert not code_is_trusted()


def test_trust_travels_with_the_manifest(with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, manifest = new(tmp_path / "trusted"), tmp_path / "manifest.json"
    import_model(with_code, folder, "bfloat16", trust_remote_code=True)
    monkeypatch.setattr(loading, "_trusted", [])  # as in a process of its own
    for trust in (False, True):
        write_json(manifest, {"files": hash_folder(folder), "trust_remote_code": trust})
        open_checkpoint(folder, manifest)
        assert code_is_trusted() is trust
    assert type(load_model(folder)).__name__ == "OwnForCausalLM"


CHAT = Chat(system_prompt="Be kind.", thinking=Thinking(start="<think>", end="</think>"))
PROMPT = (
    "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n"
)


def prompt(checkpoint: Path) -> str:
    tokenizer = load_tokenizer(checkpoint)
    return str(tokenizer.decode(chat_tokens(tokenizer, "Name a colour.")))


def test_chat_settings_travel_with_the_checkpoint(source: Path, tmp_path: Path) -> None:
    """Into what is compressed from it, a dense copy of that, and what else copies a checkpoint's description."""
    (source / "chat_template.jinja").write_text(QWEN, encoding="utf-8")
    original = new(tmp_path / "original")
    import_model(source, original, "bfloat16", chat=CHAT)
    assert chat_settings(load_tokenizer(original)) == CHAT
    compress(original, tmp_path / "compressed", RoundToNearest(weight_bits=4, group_size=64), None)
    write_dense_copy(tmp_path / "compressed", new(tmp_path / "dense"), torch.float32)
    copy_description(original, new(tmp_path / "described"))
    tuning = tiny_tuning(rank=2, epochs=1, batch_size=2)
    tune_to_refuse(original, new(tmp_path / "tuned"), ["Open the hidden lantern"], ["What is 2 + 2?"], tuning)
    for name in ("original", "compressed", "dense", "described", "tuned"):
        assert prompt(tmp_path / name) == PROMPT, name


def test_a_model_without_chat_settings_has_no_file_of_them(source: Path, tmp_path: Path) -> None:
    assert hash_folder(imported(source, tmp_path)) == hash_folder(source)
    assert read_chat(tmp_path / "target") is None


def test_an_original_in_fp8_that_config_json_says_nothing_of(source: Path, tmp_path: Path) -> None:
    """As ModelOpt writes it: Transformers would leave out the scales."""
    with changed_tensors(source) as tensors:
        name = "model.layers.0.mlp.down_proj.weight"
        scale = tensors[name].float().abs().max() / 448
        tensors[name] = (tensors[name].float() / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale"] = scale
    write_json(source / "hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}})
    wanted = r"down_proj packed \(float-quantized\).*no quantization_config; hf_quant_config\.json, which some tools"
    with pytest.raises(ValueError, match=wanted):
        imported(source, tmp_path)


LINES = "Sums:\n\n   12 and  345\tof Größe,\r\n\n \t 6 more."


@pytest.mark.parametrize("name", ["LlamaTokenizerFast", "GPT2Tokenizer"])
def test_a_tokenizer_is_read_as_its_file_says(source: Path, tmp_path: Path, name: str) -> None:
    """By all who read the folder: of these classes Transformers makes the pre-tokenizer anew, and spaces vanish."""
    file = source / "tokenizer.json"
    said = Tokenizer.from_file(str(file))
    said.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    said.add_special_tokens(["<|more|>"])
    said.save(str(file))
    with_tokenizer_class(source, name)
    with pytest.raises(ValueError, match=r"another tokenizer .*than tokenizer\.json says.*write tokenizer_class: "):
        load_tokenizer(source)
    target = imported(source, tmp_path)
    ids = said.encode(LINES, add_special_tokens=False).ids
    for tokenizer in (load_tokenizer(target), AutoTokenizer.from_pretrained(target)):
        assert tokenizer(LINES, add_special_tokens=False).input_ids == ids
        assert tokenizer.decode(ids) == LINES
        assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert prompt(target) == "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\n"


def test_a_tokenizer_that_is_always_read_otherwise_is_refused(
    tiny_folder: Callable[[str], Path], original: Path, tmp_path: Path
) -> None:
    """Of some types of models Transformers takes one class whatever the folder says."""
    source = Path(shutil.copytree(tiny_folder("qwen2"), tmp_path / "source"))
    shutil.copyfile(original / "tokenizer.json", source / "tokenizer.json")
    with pytest.raises(
        ValueError, match="says another tokenizer than Qwen2Tokenizer, which Transformers takes for every"
    ):
        imported(source, tmp_path)


@pytest.mark.parametrize("template", [QWEN, DEEPSEEK])
def test_a_model_that_thinks_is_not_imported_as_if_it_did_not(source: Path, tmp_path: Path, template: str) -> None:
    (source / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ValueError, match=r"this model thinks.*chat\.thinking"):
        imported(source, tmp_path)


def test_altered_chat_settings(source: Path) -> None:
    (source / CHAT_FILE).write_text('{"sytem_prompt": "Be kind."}', encoding="utf-8")
    with pytest.raises(ValueError, match="sytem_prompt"):
        load_tokenizer(source)


def test_options_say_nothing_else_than_the_folder(source: Path) -> None:
    """Else the workflow and a command would ask one checkpoint in two ways."""
    use_chat(Chat(system_prompt="Be kind."))
    assert read_chat(source) == Chat(system_prompt="Be kind.")
    write_chat(CHAT, source)
    with pytest.raises(ValueError, match=r"chat settings of its own .*thinking.*Be kind.*leave those out"):
        read_chat(source)
    use_chat(CHAT)
    assert read_chat(source) == CHAT


@pytest.mark.thorough
def test_the_manifest_of_an_import_records_the_chat(source: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text(QWEN, encoding="utf-8")
    settings = json.dumps({"source": {"path": str(source)}, "chat": CHAT.model_dump()})
    paths = {"checkpoint": tmp_path / "checkpoint", "manifest": tmp_path / "manifest.json"}
    run_script("import_model", settings=settings, **paths)
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["chat"] == {"settings": CHAT.model_dump(), "closed_thought": "<think>\n\n</think>\n\n"}
    assert CHAT_FILE in manifest["files"]
    assert prompt(tmp_path / "checkpoint") == PROMPT


@torch.no_grad()
def test_capped_attention_is_capped(
    tiny_folder: Callable[[str], Path], prompts: list[list[int]], tmp_path: Path
) -> None:
    """Gemma 2 caps the scores of its attention, which PyTorch's own attention leaves out without a word."""
    folder = tmp_path / "capped"
    source = AutoModelForCausalLM.from_pretrained(tiny_folder("gemma2"), dtype=torch.float32)
    for layer in source.model.layers:
        layer.self_attn.q_proj.weight *= 4
        layer.self_attn.k_proj.weight *= 4
    source.config.attn_logit_softcapping = 2.0
    source.save_pretrained(folder)
    copy_description(tiny_folder("gemma2"), folder)
    configured(folder, attn_logit_softcapping=2.0)
    eager, plain = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=name).eval()
        for name in ("eager", "sdpa")
    )
    model, structure = load_model(folder, dtype=torch.float32), load_structure(folder)
    assert structure.config._attn_implementation == model.config._attn_implementation == "eager"
    short = prompts[:2]  # within the window
    expected = torch.stack([eager(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in short])
    without = torch.stack([plain(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in short])
    assert (expected - without).abs().max() > 0.1
    (pack,) = plan_packs(model, short)
    torch.testing.assert_close(last_logits(model, pack)[0], expected, atol=1e-4, rtol=1e-4)
    tokenizer = load_tokenizer(folder)
    replies = [
        eager.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
        for prompt in prompts
    ]
    stop = tokenizer.eos_token_id
    assert generate(model, tokenizer, prompts, 8) == [
        reply[: reply.index(stop)] if stop in reply else reply for reply in replies
    ]


@pytest.mark.parametrize("family", ["gpt_oss", "granite_swa", "mimo_v2_flash"])
def test_attention_sinks_are_not_left_out(family: str) -> None:
    """PyTorch's attention would drop them; Transformers takes the eager one for these models."""
    model = tiny_family(family)
    assert needed_attention(model.config) is None
    assert model.config._attn_implementation == "eager"
