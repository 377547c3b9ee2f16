"""The registry of engines, and one suite asked of engines that can do more or less, each with a real tiny model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from aird.evaluation.engines import registry, vllm
from aird.evaluation.engines.address import Address
from aird.evaluation.engines.engine import Abilities, Completion, Engine, ServerSettings
from aird.evaluation.engines.registry import ENGINES, recorded_engine
from aird.evaluation.engines.transformers import Transformers, TransformersClient
from aird.evaluation.engines.vllm import Vllm
from aird.evaluation.measurements import ParityError
from aird.evaluation.scores import score
from aird.evaluation.suite_run import evaluate_suite
from aird.models.loading import load_model, load_tokenizer
from aird.patching.adapters import save_adapter
from aird.patching.edits import Edit
from aird.settings.suites import Serving, Suite

SUITE = Suite.model_validate({"harmful": {"set": "a"}, "harmless": {"set": "b"}, "maximum_new_tokens": 4})
SERVING = Serving(maximum_model_length=256, parity_prompts=4)
RECORDS = {
    kind: [{"id": f"{kind}-{text}", "instruction": f"{text} {kind}."} for text in ("Boil", "Paint", "Write")]
    for kind in ("harmful", "harmless")
}
# Answers that are asked about, whatever the tiny model itself says.
REFERENCE = [
    {"id": "a", "kind": "harmless", "instruction": "Boil an egg.", "completion": "Put the egg into boiling water."}
]


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
            completions.append(Completion("", (max(first, key=lambda token: first[token]),), "length", first))
        return completions

    def versions(self) -> dict[str, str]:
        return {"started": "1.0"}


@dataclass(frozen=True)
class Starter(Engine):
    """An engine that is checked, has adapters merged, and cannot tell the log-probabilities of given tokens."""

    instead: Path | None = None  # what it wrongly loads
    abilities: ClassVar = Abilities(first_token_logprobs=True, prompt_logprobs=False, tasks=False, adapters=False)

    @classmethod
    def recorded(cls, record: Mapping[str, Any], folder: Path) -> None:
        return None

    def describe(self) -> str:
        return "a starter"

    @contextlib.contextmanager
    def serve(
        self, checkpoint: Path, settings: ServerSettings, log_path: Path, adapter: Path | None = None
    ) -> Iterator[Started]:
        assert adapter is None and settings.maximum_model_length == 256
        yield Started(load_model(self.instead or checkpoint), load_tokenizer(checkpoint))


def evaluate(
    engine: Engine, checkpoint: Path, folder: Path, patch: Path | None = None, suite: Suite = SUITE, **options: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    more: dict[str, Any] = {"reference": REFERENCE, "seed": 3, "scratch": folder / "scratch", "log": folder / "log"}
    more |= options
    return evaluate_suite(checkpoint, patch, RECORDS, suite, SERVING, engine, **more)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(5)
    column = torch.nn.functional.normalize(torch.randn(128, generator=generator), dim=0)
    row = 2.0 * torch.randn(256, generator=generator)
    (tmp_path / "adapter").mkdir()
    save_adapter([Edit("model.layers.2.mlp.down_proj", column=column, row=row)], tmp_path / "adapter", "base")
    return tmp_path / "adapter"


def test_every_engine_is_a_file_and_an_entry() -> None:
    folder = Path(registry.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "engine", "registry", "vllm_server"}
    assert {kind.__module__.rpartition(".")[2] for kind in ENGINES.values()} == files


@pytest.mark.parametrize(
    ("record", "engine"),
    [
        ({"python": "vllm/bin/python", "url": None}, lambda folder: Vllm(folder / "vllm/bin/python")),
        ({"python": "/opt/vllm/bin/python", "url": None}, lambda folder: Vllm(Path("/opt/vllm/bin/python"))),
        ({"python": None, "url": "http://localhost:8000"}, lambda folder: Address("http://localhost:8000")),
    ],
)
def test_the_record_of_an_environment_names_the_engine(
    tmp_path: Path, record: dict[str, Any], engine: Callable[[Path], Engine]
) -> None:
    (tmp_path / "vllm.json").write_text(json.dumps({**record, "versions": {}}), encoding="utf-8")
    assert recorded_engine(tmp_path / "vllm.json") == engine(tmp_path)


def test_what_an_engine_cannot_do_is_not_measured(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    checkpoint = tiny_folder("llama")
    started, measured = evaluate(Starter(), checkpoint, tmp_path)
    local, reference = evaluate(Transformers(), checkpoint, tmp_path)
    assert [record["completion"] for record in started] == [record["completion"] for record in local]
    assert measured["parity"]["same_first_token"] == 4 and reference["parity"] is None
    assert "started" in measured["versions"] and "started" not in reference["versions"]
    assert measured["answers"] == [] and reference["answers"][0]["tokens"] > 3
    assert score(started, measured, 0)["perplexity"] is None
    assert score(local, reference, 0)["perplexity"]["n"] == 1
    assert not list(tmp_path.iterdir())


def test_tasks_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    suite = Suite.model_validate({**SUITE.model_dump(), "tasks": ["boolq"]})
    with pytest.raises(ValueError, match="need a server, not Transformers"):
        evaluate(Transformers(), tmp_path / "nothing", tmp_path, suite=suite)


def test_an_adapter_is_merged_where_the_engine_takes_none(
    tiny_folder: Callable[[str], Path], tmp_path: Path, adapter: Path
) -> None:
    """The check compares the merged checkpoint with base and adapter, so a merge gone wrong would be seen."""
    checkpoint = tiny_folder("llama")
    merged, measured = evaluate(Starter(), checkpoint, tmp_path, adapter)
    beside, _ = evaluate(Transformers(), checkpoint, tmp_path, adapter)
    plain, _ = evaluate(Transformers(), checkpoint, tmp_path)
    texts = [[record["completion"] for record in records] for records in (merged, beside, plain)]
    assert texts[0] != texts[2] and texts[1] != texts[2]
    assert measured["parity"]["upper_quartile_difference"] < 0.1
    with pytest.raises(ParityError, match="disagree on this checkpoint"):
        evaluate(Starter(instead=checkpoint), checkpoint, tmp_path, adapter)


def test_arguments_of_vllm_on_gpus_and_on_a_processor(tiny_folder: Callable[[str], Path]) -> None:
    settings = ServerSettings(
        64,
        gpus=4,
        gpu_memory_utilization=0.8,
        key_value_cache_dtype="fp8",
        extra_arguments=Serving(arguments={"max_num_seqs": 8}).server_arguments(),
    )
    arguments = vllm._arguments(tiny_folder("llama"), settings, None, 1, "mark", on_cpu=False)
    assert {"--tensor-parallel-size=4", "--gpu-memory-utilization=0.8", "--kv-cache-dtype=fp8"} <= set(arguments)
    # The last of two wins.
    assert arguments[-1] == "--max-num-seqs=8"
    processor = vllm._arguments(tiny_folder("llama"), settings, None, 1, "mark", on_cpu=True)
    assert not [each for each in processor if "parallel" in each or "utilization" in each]
    assert "--kv-cache-dtype=fp8" in processor
    plain = vllm._arguments(tiny_folder("llama"), ServerSettings(64), None, 1, "mark", on_cpu=False)
    assert "--tensor-parallel-size=1" in plain and not [each for each in plain if "cache-dtype" in each]


@pytest.mark.parametrize("engine", [Starter(), Address("http://localhost:1"), Transformers(), Vllm(Path("python"))])
def test_a_cache_that_an_engine_has_not_is_refused_before_anything_is_loaded(
    engine: Engine, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cannot be given a key/value cache of the type q8_0"):
        evaluate(engine, tiny_folder("llama"), tmp_path, key_value_cache_dtype="q8_0")
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


def test_a_quantised_cache_may_move_first_tokens_by_more_and_the_record_says_so(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tiny_folder("llama")
    _, measured = evaluate(Cached(off=0.7), checkpoint, tmp_path, key_value_cache_dtype="fp8")
    parity = measured["parity"]
    assert parity["upper_quartile_difference"] == pytest.approx(0.7, abs=0.05)
    assert (parity["key_value_cache_dtype"], parity["tolerance"]) == ("fp8", 4 * SERVING.parity_tolerance)
    with pytest.raises(ParityError, match="in fp8 alone do this.*raise parity_tolerance"):
        evaluate(Cached(off=1.3), checkpoint, tmp_path, key_value_cache_dtype="fp8")
    with pytest.raises(ParityError, match="disagree"):
        evaluate(Cached(off=0.7), checkpoint, tmp_path)
    _, plain = evaluate(Cached(), checkpoint, tmp_path)
    assert "tolerance" not in plain["parity"]
