"""Engines as plug-ins, and one suite asked of engines that can do more or less, each with a real tiny model."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from patches import adapter_of, random_edits
from project import ROOT
from servers import SERVING, SUITE, asking, evaluate, server_at

from aird.compression.compress import compress
from aird.compression.recipes.bitsandbytes import BitsAndBytes
from aird.evaluation.engine import Abilities, AdapterRefused, Completion, Engine, ServerSettings, open_engine
from aird.evaluation.engines import vllm
from aird.evaluation.engines.llama_cpp import LlamaCpp
from aird.evaluation.engines.transformers import Transformers, TransformersClient
from aird.evaluation.engines.url import Url
from aird.evaluation.engines.vllm import Vllm, VllmSettings
from aird.evaluation.parity import ParityError
from aird.evaluation.scores import score
from aird.models.dense import needs_dense_copy
from aird.models.loading import load_model, load_tokenizer
from aird.plugin import FILES
from aird.support.files import read_json, write_json


class Started(TransformersClient):
    """Asks a model that is started as a server is, with its first tokens' log-probabilities by token id."""

    def complete(
        self, prompts: Sequence[Sequence[int]], maximum_new_tokens: int, *, logprobs: int | None = None
    ) -> list[Completion]:
        if logprobs is None:
            return super().complete(prompts, maximum_new_tokens)
        completions = []
        for prompt in prompts:
            with torch.no_grad():
                likeliest = (
                    self._model(torch.tensor([list(prompt)])).logits[0, -1].double().log_softmax(-1).topk(logprobs)
                )
            first = dict(zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True))
            token = max(first, key=lambda token: first[token])
            completions.append(Completion(self._tokenizer.decode([token]), (token,), "length", first))
        return completions

    def versions(self) -> dict[str, str]:
        return {"started": "1.0"}


@dataclass(frozen=True)
class Starter(Engine):
    """An engine that is checked, has adapters merged, and cannot tell the log-probabilities of given tokens."""

    instead: Path | None = None  # what it wrongly loads
    abilities: ClassVar = Abilities(first_token_logprobs=20, prompt_logprobs=False, tasks=False, adapters=False)

    title = "a starter"

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[Started]:
        assert adapter is None and settings.maximum_model_length == 256
        yield Started(load_model(self.instead or checkpoint), load_tokenizer(checkpoint))


@dataclass(frozen=True)
class Carrier(Starter):
    """An engine that is checked and takes adapters: beside the base, not at all, or with an error."""

    does: str = "carries"
    abilities: ClassVar = Abilities(first_token_logprobs=20, prompt_logprobs=True, tasks=False, adapters=True)

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[Started]:
        if adapter is not None and self.does == "refuses":
            raise AdapterRefused("Tiny does not support LoRA yet")
        model = load_model(checkpoint, adapter if self.does == "carries" else None)
        yield Started(model, load_tokenizer(checkpoint))


EDITED = ("model.layers.2.mlp.down_proj",)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return adapter_of(random_edits(EDITED, 2.0), tmp_path / "adapter")


def test_every_engine_is_a_file_that_a_plan_can_load() -> None:
    """Its settings are read on every start of Snakemake, so nothing heavy comes with them."""
    program = (
        "import sys; from aird.plugin import ENGINES\n"
        "print(*[ENGINES.load(name).title for name in ENGINES.names()], sep=', ')\n"
        "assert not {'torch', 'transformers', 'pandas', 'httpx', 'safetensors'} & sys.modules.keys()"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert told.stdout == "llama.cpp, Transformers, a running server, vLLM\n"


def test_an_engine_is_opened_by_its_name_and_settings(tmp_path: Path) -> None:
    assert open_engine("url", {"address": "http://host"}, None) == server_at("http://host")
    write_json(tmp_path / "vllm.json", {"python": "vllm/bin/python", "versions": {}})
    # As a bucket has it on another machine than the one that built the environment.
    with pytest.raises(FileNotFoundError, match=r"build it again by .* --force results/environments/vllm.json"):
        open_engine("vllm", {}, tmp_path / "vllm.json")
    (tmp_path / "vllm/bin").mkdir(parents=True)
    (tmp_path / "vllm/bin/python").touch()
    settings = VllmSettings(key_value_cache_gib=2.0, lock="a.txt")
    engine = open_engine("vllm", settings.asked(), tmp_path / "vllm.json")
    assert engine == Vllm(tmp_path / "vllm/bin/python", VllmSettings(key_value_cache_gib=2.0))


def test_an_engine_of_a_users_own_file_answers(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FILES, str(ROOT / "tests/plugins/echo_engine.py"))
    engine = open_engine("echo_engine", {"tokens": 3}, None)
    completions, measured = evaluate(engine, original, tmp_path)
    assert {record["tokens"] for record in completions} == {3} and measured["parity"] is None
    assert measured["engine"]["name"] == "echo" and measured["engine"]["not_measured"] == ["perplexity"]


def test_what_an_engine_cannot_do_is_not_measured(original: Path, tmp_path: Path) -> None:
    started, measured = evaluate(Starter(), original, tmp_path)
    local, reference = evaluate(Transformers(), original, tmp_path)
    assert [record["completion"] for record in started] == [record["completion"] for record in local]
    assert measured["parity"]["same_first_token"] == 4 and reference["parity"] is None
    assert "started" in measured["versions"] and "started" not in reference["versions"]
    assert measured["answers"] == [] and reference["answers"][0]["tokens"] > 3
    assert score(started, measured, 0)["perplexity"] is None
    assert score(local, reference, 0)["perplexity"]["n"] == 1
    assert not list(tmp_path.iterdir())


def test_tasks_are_not_measured_where_the_engine_cannot_be_asked(original: Path, tmp_path: Path) -> None:
    _, measured = evaluate(Transformers(), original, tmp_path, suite=asking(tasks=["boolq"]))
    assert measured["tasks"] == {} and measured["questions"] == {}
    assert measured["engine"] == {"name": "Transformers", "prompts": "token ids", "not_measured": ["tasks"]}


def test_the_record_says_on_which_gpus_it_was(
    original: Path, tmp_path: Path, pretend_gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FP8 rounds activations from compute capability 8.9 on, and no more below."""
    pretend_gpus(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-0")
    completions, measured = evaluate(Transformers(), original, tmp_path)
    assert measured["engine"]["gpus"] == [{"name": "Pretended", "compute_capability": "8.0"}] * 2
    assert completions[0]["engine"] == measured["engine"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "gpus" not in evaluate(Transformers(), original, tmp_path)[1]["engine"]


@dataclass(frozen=True)
class DenseOnly(Starter):
    """An engine that reads no quantised weights."""

    def needs_dense_copy(self, checkpoint: Path) -> bool:
        return needs_dense_copy(checkpoint, on_cpu=True)


def test_the_record_says_what_the_engine_computed_with(original: Path, tmp_path: Path) -> None:
    compress(original, tmp_path / "int8", BitsAndBytes(variant="int8"), None)
    for engine, folder, weights in (
        (DenseOnly(), tmp_path / "int8", "dense copy"),
        (DenseOnly(), original, "as stored"),
        (Transformers(), tmp_path / "int8", "as stored"),
    ):
        completions, utility = evaluate(engine, folder, tmp_path)
        assert completions[0]["weights"] == utility["weights"] == score(completions, utility, 0)["weights"] == weights
    assert (LlamaCpp.weights, Url.weights) == ("GGUF file", None)


def test_an_adapter_is_merged_where_the_engine_takes_none(original: Path, tmp_path: Path, adapter: Path) -> None:
    """The check compares the merged checkpoint with base and adapter, so a merge gone wrong would be seen."""
    merged, measured = evaluate(Starter(), original, tmp_path, adapter)
    beside, _ = evaluate(Transformers(), original, tmp_path, adapter)
    plain, _ = evaluate(Transformers(), original, tmp_path)
    texts = [[record["completion"] for record in records] for records in (merged, beside, plain)]
    assert texts[0] != texts[2] and texts[1] != texts[2]
    assert [records[0]["served_as"] for records in (merged, beside, plain)] == ["merged", "adapter", "plain"]
    assert measured["parity"]["upper_quartile_difference"] < 0.1
    with pytest.raises(ParityError, match="disagree on this checkpoint"):
        evaluate(Starter(instead=original), original, tmp_path, adapter)


def test_a_patch_is_measured_as_it_ships_and_merged_on_request(original: Path, tmp_path: Path, adapter: Path) -> None:
    plain, beside, merged = (
        evaluate(Carrier(), original, tmp_path, patch, suite)
        for patch, suite in ((None, asking(serve="both")), (adapter, SUITE), (adapter, asking(serve="merged")))
    )
    assert [records[0]["served_as"] for records, _ in (plain, beside, merged)] == ["plain", "adapter", "merged"]
    assert [utility["served_as"] for _, utility in (plain, beside, merged)] == ["plain", "adapter", "merged"]
    assert "distance_to_unpatched" not in plain[1]["parity"] and "merged" not in plain[1]
    for _, utility in (beside, merged):
        assert utility["parity"]["distance_to_patched"] < 0.1 < utility["parity"]["distance_to_unpatched"]
        # The perplexity is of the same form.
        assert utility["answers"][0]["negative_log_likelihood"] != plain[1]["answers"][0]["negative_log_likelihood"]
    assert beside[1]["answers"][0]["negative_log_likelihood"] == pytest.approx(
        merged[1]["answers"][0]["negative_log_likelihood"], rel=0.01
    )


def test_both_forms_are_compared_prompt_by_prompt(original: Path, tmp_path: Path, adapter: Path) -> None:
    completions, utility = evaluate(Carrier(), original, tmp_path, adapter, asking(serve="both"))
    alone, _ = evaluate(Carrier(), original, tmp_path, adapter)
    merged, _ = evaluate(Carrier(), original, tmp_path, adapter, asking(serve="merged"))
    assert completions[0]["served_as"] == "adapter"
    assert [record["completion"] for record in completions] == [record["completion"] for record in alone]
    assert [record["merged"]["completion"] for record in completions] == [record["completion"] for record in merged]
    first = utility["merged"]["first_tokens"]
    # bfloat16 rounds the merged matrix once more.
    assert first["prompts"] == 6 and 0 < first["upper_quartile_difference"] < 0.1
    assert utility["merged"]["parity"]["distance_to_patched"] < 0.1
    scored = score(completions, utility, 0)
    pairs = zip(alone, merged, strict=True)
    assert scored["merged"]["other_completions"] == sum(one["completion"] != two["completion"] for one, two in pairs)
    assert scored["merged"]["other_labels"] == {"harmful": 0, "harmless": 0}
    # Transformers is not compared with itself, but answers in both forms.
    local, measured = evaluate(Transformers(), original, tmp_path, adapter, asking(serve="both"))
    assert measured["merged"] == {"parity": None, "first_tokens": None} and "merged" in local[0]
    with pytest.raises(ValueError, match="takes no adapter"):
        evaluate(Starter(), original, tmp_path, adapter, asking(serve="both"))


def test_a_patch_that_an_engine_leaves_out_is_found_however_little_it_changes(original: Path, tmp_path: Path) -> None:
    weak = adapter_of(random_edits(EDITED, 0.05), tmp_path / "weak")
    _, utility = evaluate(Carrier(), original, tmp_path, weak)
    assert utility["parity"]["distance_to_unpatched"] < SERVING.parity_tolerance / 2
    with pytest.raises(ParityError, match="the patch is not on what is served"):
        evaluate(Carrier(does="ignores"), original, tmp_path, weak)


def test_an_adapter_that_an_engine_refuses_is_merged(
    original: Path, tmp_path: Path, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Carrier(does="refuses")
    completions, utility = evaluate(refusing, original, tmp_path, adapter)
    assert completions[0]["served_as"] == utility["served_as"] == "merged"
    assert utility["parity"]["distance_to_patched"] < 0.1 < utility["parity"]["distance_to_unpatched"]
    assert "Tiny does not support LoRA yet\nThe patch is served merged." in caplog.text
    with pytest.raises(AdapterRefused):
        evaluate(refusing, original, tmp_path, adapter, asking(serve="both"))


@pytest.mark.parametrize("form", ["merged", "both"])
def test_a_merged_patch_is_refused_before_a_gguf_file_is_served(
    original: Path, tmp_path: Path, adapter: Path, form: str
) -> None:
    with pytest.raises(ValueError, match=f"write serve: adapter, or an engine that serves.*found: serve: {form}"):
        evaluate(LlamaCpp(Path("nowhere")), original, tmp_path, adapter, asking(serve=form))
    assert not (tmp_path / "scratch").exists()


def test_of_both_forms_one_is_in_memory_at_a_time(original: Path, adapter: Path, tmp_path: Path) -> None:
    loaded: list[weakref.ref[Any]] = []

    class Watched(Transformers):
        """Transformers, which looks whether the models that it had before are gone."""

        @contextlib.contextmanager
        def serve(self, *arguments: Any) -> Iterator[TransformersClient]:
            assert [model() for model in loaded] == [None] * len(loaded)
            with super().serve(*arguments) as client:
                loaded.append(weakref.ref(client._model))
                yield client
                del client

    _, utility = evaluate(Watched(), original, tmp_path, adapter, asking(serve="both"))
    assert len(loaded) == 2 and utility["served_as"] == "adapter" and "merged" in utility


def test_a_system_prompt_is_served_as_such(original: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").mkdir()
    (tmp_path / "prompt/system_prompt.txt").write_text("Be kind.", encoding="utf-8")
    completions, utility = evaluate(Carrier(), original, tmp_path, tmp_path / "prompt", asking(serve="both"))
    assert completions[0]["served_as"] == utility["served_as"] == "system_prompt" and "merged" not in utility


class Tasked(Carrier):
    """An engine that lm-eval can ask."""

    abilities: ClassVar = dataclasses.replace(Carrier.abilities, tasks=True)


def test_tasks_are_not_measured_of_a_system_prompt(
    original: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are asked without it, and would be those of the checkpoint alone."""
    (tmp_path / "prompt").mkdir()
    (tmp_path / "prompt/system_prompt.txt").write_text("Be kind.", encoding="utf-8")
    _, measured = evaluate(Tasked(), original, tmp_path, tmp_path / "prompt", asking(tasks=["boolq"]))
    assert measured["tasks"] == {} and measured["questions"] == {} and measured["answers"]
    assert measured["engine"]["not_measured"] == ["tasks"]
    assert "asked without a chat and so without a system prompt" in caplog.text


def test_arguments_of_vllm_on_gpus_and_on_a_processor(original: Path) -> None:
    options = VllmSettings(gpu_memory_utilization=0.8, arguments={"max_num_seqs": 8})
    settings = ServerSettings(64, gpus=4, key_value_cache_dtype="fp8")
    arguments = vllm._arguments(options, original, settings, None, 1, "mark", on_cpu=False)
    assert {"--tensor-parallel-size=4", "--gpu-memory-utilization=0.8", "--kv-cache-dtype=fp8"} <= set(arguments)
    # The last of two wins.
    assert arguments[-1] == "--max-num-seqs=8"
    processor = vllm._arguments(options, original, settings, None, 1, "mark", on_cpu=True)
    assert not [each for each in processor if "parallel" in each or "utilization" in each]
    assert "--kv-cache-dtype=fp8" in processor
    plain = vllm._arguments(VllmSettings(), original, ServerSettings(64), None, 1, "mark", on_cpu=False)
    assert "--tensor-parallel-size=1" in plain and not [each for each in plain if "cache-dtype" in each]


@pytest.mark.parametrize(
    ("config", "dtype", "adapters"),
    [
        ({"dtype": "float32"}, "float32", False),
        ({"dtype": None, "torch_dtype": "float32"}, "float32", False),
        ({"dtype": "bfloat16"}, "auto", True),
        ({"dtype": "float32", "quantization_config": {"quant_method": "gptq", "bits": 4}}, "auto", True),
        # vLLM gets a dense copy of this one, and that is in float32.
        ({"dtype": "float32", "quantization_config": {"quant_method": "bitsandbytes"}}, "auto", False),
    ],
)
def test_a_float32_checkpoint_is_computed_in_float32_on_a_gpu(
    original: Path,
    tmp_path: Path,
    pretend_gpus: Callable[[int], None],
    config: dict[str, Any],
    dtype: str,
    adapters: bool,
) -> None:
    """vLLM's own choice is a 16-bit type. Its LoRA has kernels for such types only, so patches are merged."""
    pretend_gpus(1)
    folder = Path(shutil.copytree(original, tmp_path / "model"))
    write_json(folder / "config.json", read_json(folder / "config.json") | config)
    arguments = vllm._arguments(VllmSettings(), folder, ServerSettings(64), None, 1, "mark", on_cpu=False)
    assert f"--dtype={dtype}" in arguments
    assert Vllm(None).able(folder).adapters is adapters


@pytest.mark.parametrize("engine", [Starter(), server_at("http://localhost:1"), Transformers(), Vllm(Path("python"))])
def test_a_cache_that_an_engine_has_not_is_refused_before_anything_is_loaded(
    engine: Engine, original: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cannot be given a key/value cache of the type q8_0"):
        evaluate(engine, original, tmp_path, key_value_cache_dtype="q8_0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "config", "said"),
    [
        ({"avx512f"}, {"head_dim": 64}, None),
        ({"amx_tile"}, {"hidden_size": 128, "num_attention_heads": 4}, None),
        ({"avx2"}, {"head_dim": 64}, "with AVX-512 or AMX only; use a GPU"),
        ({"avx512f"}, {"head_dim": 80}, "this model have 80"),
        ({"avx512f"}, {"text_config": {"hidden_size": 160, "num_attention_heads": 2}}, "this model have 80"),
    ],
)
def test_what_a_quantised_cache_needs_of_a_processor(flags: set[str], config: dict[str, Any], said: str | None) -> None:
    with contextlib.nullcontext() if said is None else pytest.raises(ValueError, match=said):
        vllm._check_cpu_cache(config, "fp8", frozenset(flags))


@dataclass(frozen=True)
class Cached(Starter):
    """An engine with a quantised cache, whose first tokens are `off` nats from those of Transformers."""

    off: float = 0.0
    key_value_cache_dtypes: ClassVar = ("fp8",)

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[Started]:
        with super().serve(checkpoint, settings, log_path, adapter) as client:
            complete = client.complete

            def moved(*arguments: Any, **more: Any) -> list[Completion]:
                completions = complete(*arguments, **more)
                return [
                    dataclasses.replace(
                        each,
                        first_token_logprobs=each.first_token_logprobs
                        and {token: value - self.off for token, value in each.first_token_logprobs.items()},
                    )
                    for each in completions
                ]

            client.complete = moved  # type: ignore[method-assign]
            yield client


def test_a_quantised_cache_may_move_first_tokens_by_more_and_the_record_says_so(original: Path, tmp_path: Path) -> None:
    _, measured = evaluate(Cached(off=0.7), original, tmp_path, key_value_cache_dtype="fp8")
    parity = measured["parity"]
    assert parity["upper_quartile_difference"] == pytest.approx(0.7, abs=0.05)
    assert (parity["key_value_cache_dtype"], parity["tolerance"]) == ("fp8", 4 * SERVING.parity_tolerance)
    with pytest.raises(ParityError, match="in fp8 alone do this.*raise parity_tolerance"):
        evaluate(Cached(off=1.3), original, tmp_path, key_value_cache_dtype="fp8")
    with pytest.raises(ParityError, match="disagree"):
        evaluate(Cached(off=0.7), original, tmp_path)
    _, plain = evaluate(Cached(), original, tmp_path)
    assert "tolerance" not in plain["parity"]
