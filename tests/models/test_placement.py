"""A model that is spread over several GPUs: who goes where, and that everything done to it gives the same numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.families import tiny_family
from models.placed import devices, dispatch, homes

from aird.directions.activations import capture
from aird.directions.candidate_scores import score_candidates
from aird.directions.candidates import difference_in_means
from aird.directions.cosmic import ablation_divergences, score_by_cosine
from aird.inference.generation import generate
from aird.inference.hooks import ablation, addition
from aird.models.blocks import decoder_blocks
from aird.models.loading import _device_map, load_structure
from aird.models.placement import largest_share, spread
from aird.models.structure import residual_writers, writer_modules
from aird.patching.calibration import divergence, make_batches
from aird.patching.edits import Edit
from aird.patching.fitting import fit_edits, record_projections, targets
from aird.patching.replies import ReplySet
from aird.settings.directions import Directions
from aird.support import gpus

PROMPTS = [[1, 5 + number, 30 + number % 7, 2, 60, 61, 62] for number in range(12)]
HARMFUL, HARMLESS = PROMPTS[:6], PROMPTS[6:]
REFUSAL_TOKENS = [40, 31, 7]


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("gpus", [2, 3, 4])
def test_blocks_are_dealt_in_order_and_all_else_is_on_the_first(
    tiny_folder: Callable[[str], Path], family: str, gpus: int
) -> None:
    model = load_structure(tiny_folder(family))
    places = spread(model, gpus)
    of_blocks = [places[f"model.layers.{index}"] for index in range(4)]
    assert of_blocks == sorted(of_blocks) and of_blocks[-1] == gpus - 1
    outside = {name: place for name, place in places.items() if not name.startswith("model.layers.")}
    assert set(outside) == {"model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"}
    assert set(outside.values()) == {0}
    for name, _ in model.named_parameters():
        assert sum(name.startswith(f"{part}.") for part in places) == 1


def test_a_large_vocabulary_leaves_the_first_gpu_fewer_blocks() -> None:
    model = tiny_family("llama", num_hidden_layers=12, vocab_size=4000)
    counts = Counter(place for name, place in spread(model, 3).items() if ".layers." in name)
    assert counts[0] < counts[1] == counts[2] or counts[0] == 0


@pytest.mark.parametrize("vocabulary", [64, 4000])
def test_the_largest_share_is_that_of_the_gpu_with_most_weights(vocabulary: int) -> None:
    model = tiny_family("llama", num_hidden_layers=12, vocab_size=vocabulary)
    whole = sum(parameter.numel() for parameter in model.parameters())
    block = sum(parameter.numel() for parameter in decoder_blocks(model)[0].parameters())
    outside = whole - 12 * block
    assert largest_share(model, 1) == whole
    for number in (2, 3):
        counts = Counter(place for name, place in spread(model, number).items() if ".layers." in name)
        assert largest_share(model, number) == max(outside * (gpu == 0) + counts[gpu] * block for gpu in range(number))


def test_gpus_that_are_not_this_processes_own_get_nothing(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers' own map of two GPUs has the head on the second, and the logits are looked for on the first."""
    monkeypatch.setattr(gpus, "_own", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model = tiny_family("llama", num_hidden_layers=4).eval().requires_grad_(False)
    automatic = spread(model, 2) | {"model.norm": 1, "lm_head": 1}
    model = dispatch(model, automatic)
    with devices(), pytest.raises(AssertionError, match="meets tensors on cuda:0 and cuda:1"):
        capture(model, HARMFUL, 3, REFUSAL_TOKENS)
    assert _device_map(tiny_folder("llama")) == {"": 0}
    monkeypatch.setattr(gpus, "_own", ["0", "1"])
    assert _device_map(tiny_folder("llama")) == spread(load_structure(tiny_folder("llama")), 2)


@pytest.fixture(scope="module", params=["llama", pytest.param("gemma2", marks=pytest.mark.thorough)])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Return a model on the CPU, and the same one spread over three devices."""
    models = [tiny_family(request.param, num_hidden_layers=4).eval().requires_grad_(False) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    spread_model = dispatch(models[1], spread(models[1], 3))
    assert homes(spread_model) == {"cuda:0", "cuda:1", "cuda:2"}
    return models[0], spread_model


@pytest.fixture(autouse=True)
def no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


def both(pair: tuple[Any, Any], work: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return what some work gives on the model as a whole, and where it is spread."""
    whole, spread_model = pair
    expected = work(whole)
    with devices():
        return expected, work(spread_model)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return other.device.type == "cpu" and torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_tensors_of_two_devices_do_not_meet() -> None:
    with devices():
        one, other = torch.ones(2, device="cuda:0"), torch.ones(2, device="cuda:1")
        with pytest.raises(AssertionError, match="meets tensors on"):
            one + other
        with pytest.raises(AssertionError, match="meets tensors on"):
            one[torch.tensor([1], device="cuda:1")]
        assert (one + other.to("cuda:0")).cpu().tolist() == [2.0, 2.0]


def test_structure_activations_and_scores(pair: tuple[Any, Any]) -> None:
    expected, found = both(pair, residual_writers)
    assert expected == found

    def candidates(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        (harmful, scores), (harmless, _) = (capture(model, part, 3, REFUSAL_TOKENS) for part in (HARMFUL, HARMLESS))
        return difference_in_means(harmful, harmless), scores

    one, other = both(pair, candidates)
    assert same(one[0], other[0]) and same(one[1], other[1])
    settings = Directions(harmful="a", harmless="b", minimum_induce=-1000.0)
    scores = both(pair, lambda model: score_candidates(model, one[0], HARMFUL, HARMLESS, REFUSAL_TOKENS, settings))
    for name, values in scores[0].items():
        assert same(values, scores[1][name]), name
        assert bool(values.isfinite().any())


def test_cosmic(pair: tuple[Any, Any]) -> None:
    generator = torch.Generator().manual_seed(4)
    width = pair[0].config.hidden_size
    candidates = torch.randn(4, 3, width, generator=generator, dtype=torch.float64)
    one, other = both(pair, lambda model: score_by_cosine(model, candidates, HARMFUL, HARMLESS, [1, 3], 1.0))
    assert [row["layer"] for row in one["scores"]] == [row["layer"] for row in other["scores"]]
    for row, again in zip(one["scores"], other["scores"], strict=True):
        assert row == pytest.approx(again, rel=1e-4)
    units = candidates[1] / candidates[1].norm(dim=-1, keepdim=True)
    divergences = both(pair, lambda model: ablation_divergences(model, units, HARMLESS))
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-3)


def test_replies_with_and_without_a_direction(pair: tuple[Any, Any]) -> None:
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=2)
    plain = both(pair, lambda model: generate(model, tokenizer, PROMPTS, 6))
    assert plain[0] == plain[1]
    unit = torch.nn.functional.normalize(torch.randn(pair[0].config.hidden_size, dtype=torch.float64), dim=0)

    def ablated(model: Any) -> list[list[int]]:
        blocks = list(decoder_blocks(model))
        with ablation(blocks, writer_modules(model), unit.to(model.device)), addition(blocks[2], 5 * unit):
            return generate(model, tokenizer, PROMPTS, 6)

    changed = both(pair, ablated)
    assert changed[0] == changed[1] != plain[0]


def test_patches(pair: tuple[Any, Any]) -> None:
    unit = torch.nn.functional.normalize(torch.randn(pair[0].config.hidden_size, dtype=torch.float64), dim=0)
    modules = [name for block in residual_writers(pair[0])[1:] for name in block.names]

    def fitted(model: Any) -> list[torch.Tensor]:
        written = record_projections(model, PROMPTS, 3, unit, modules)
        wanted = targets(written, [True] * 6 + [False] * 6, 2.0)
        return [edit.row.cpu() for edit in fit_edits(model, PROMPTS, wanted, unit, [1, 2, 3], 0.1)]

    one, other = both(pair, fitted)
    assert all(torch.allclose(row, again, rtol=1e-2, atol=1e-4) for row, again in zip(one, other, strict=True))

    generator = torch.Generator().manual_seed(6)
    tokens = torch.randint(3, 60, (len(PROMPTS), 4, 8), generator=generator)
    likelihoods = torch.randn(tokens.shape, generator=generator).log_softmax(-1)
    replies = ReplySet(PROMPTS, [[7, 8, 9]] * len(PROMPTS), tokens, likelihoods, [True] * len(PROMPTS))
    edits = [
        Edit.rank_one(name, unit.float(), torch.randn(pair[0].get_submodule(name).in_features, generator=generator))
        for name in modules
    ]

    # The loss that patches learn by; its gradient runs in threads of a real GPU's own.
    @torch.no_grad()
    def loss(model: Any) -> float:
        (batch,) = make_batches(model, [replies], 1, 0)
        return float(divergence(model, batch, 1, edits))

    one, other = both(pair, loss)
    assert one == pytest.approx(other, rel=1e-4) and one > 0.1
