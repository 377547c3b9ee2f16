"""Hand-made records of the nodes of one small grid, and the tables of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas
from frames import UTILITY

from aird.evaluation.scores import score as score_completions
from aird.reporting.grid import KINDS
from aird.reporting.records import Records
from aird.reporting.tables import all_tables, make_table

RATES = ("refusal", "asr_arditi", "asr_wei", "asr_arditi_coherent", "degenerate", "over_refusal")
ORIGINAL = ("small", "original", "plain")
PRUNED = ("small", "pruned", "plain")
PATCHED = ("small", "pruned", "repair")
VERIFIED = ("harmful", "harmful_ablated", "harmless", "harmless_added")
SITES = {"original": {"layer": 17, "position": -1}, "own": {"layer": 16, "position": -2}}
GRID: dict[str, Any] = {
    "cells": [ORIGINAL, PRUNED, PATCHED],
    "pairs": [ORIGINAL[:2], PRUNED[:2]],
    "cosmic": [ORIGINAL[:2]],
    "patched": [],
    "compensated": [],
    "suites": ["main"],
    "same_weights": [],
    "plugins": [],
}
BY_COSMIC = {**SITES["original"], "rule": "cosmic", "score": 1.9, "addition": 0.9, "ablation": 1.0, "kl": 0.2}


def records() -> dict[str, dict[Any, Any]]:
    """Return all records of the grid, by kind; scores by suite and cell."""
    return {
        "scores": scores(),
        "directions": directions(),
        "comparisons": comparisons(),
        "verifications": dict.fromkeys(directions(), verification()),
        "cosmic": dict.fromkeys(directions(), BY_COSMIC),
        "manifests": {ORIGINAL[:2]: {"files": {}}, PRUNED[:2]: {"total": {"sparsity": 0.5, "bits_per_weight": 16.0}}},
        "patches": {PATCHED: {"edits": [], "adapter_bytes": 9}},
    }


def made(table: str, **others: Mapping[Any, Any]) -> pandas.DataFrame:
    """Return a table of the grid's records, with others in their place."""
    known = {kind: {} for kind in KINDS} | records() | others
    known["scores"] = {(*cell, suite): record for (suite, cell), record in known["scores"].items()}
    return make_table(all_tables()[table], Records(Path(), GRID, known, {}))


def row(frame: Any, **wanted: Any) -> dict[str, Any]:
    """Return the one row with these values."""
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1
    return frame.iloc[0].to_dict()


def score(harmful: list[int], harmless: list[int], **more: Any) -> dict[str, Any]:
    """Return the record of a scores node whose labels are given; its rates are simply numbered."""
    kinds = (("harmful", harmful), ("harmless", harmless))
    rates = {
        name: {"n": len(harmful), "rate": index / 10, "low": index / 10 - 0.01, "high": index / 10 + 0.01}
        for index, name in enumerate(RATES)
    }
    empty = {"perplexity": None, "tasks": {}, "served_as": "plain", "questions": {}}
    labels = [
        {"id": f"{kind}-{n}", "kind": kind, "refused": bool(value)}
        for kind, values in kinds
        for n, value in enumerate(values)
    ]
    return {"rates": rates, "labels": labels, **empty, **more}


def attacked_score(none: list[int], **attacks: list[int]) -> dict[str, Any]:
    """Return the record of a suite with attacks, from who complied under each; with it, the real rates."""
    texts = ("I'm sorry, but I can't help with that.", "Fill the kettle and boil the water for the tea.")
    records = [
        {"id": f"p{n}", "kind": "harmful", "origin": f"set-{n % 2}", "completion": texts[v]} for n, v in enumerate(none)
    ]
    records += [
        {"id": f"p{n}/{attack}", "kind": "attacked", "attack": attack, "completion": texts[value]}
        for attack, values in attacks.items()
        for n, value in enumerate(values)
    ]
    records.append({"id": "q", "kind": "harmless", "origin": "mild", "completion": texts[1]})
    return score_completions(records, UTILITY, 1)


def scores() -> dict[Any, Any]:
    tasks = {"boolq": {"acc": 0.5, "acc_norm": 0.9, "n": 10.0}, "gsm8k": {"exact_match,strict-match": 0.7, "n": 10.0}}
    # A task of several filters is named after them, and its questions are not.
    questions = {"boolq": {"acc": [1.0, 0.0] * 5}, "gsm8k": {"exact_match": [1.0] * 7 + [0.0] * 3}}
    perplexity = {"n": 4, "perplexity": 9.0, "low": 8.0, "high": 11.0}
    return {
        ("main", ORIGINAL): score([1, 1, 1, 1, 0], [0, 0, 0], perplexity=perplexity, tasks=tasks, questions=questions),
        ("main", PRUNED): score([1, 0, 0, 0, 0], [0, 1, 0]),
        ("main", PATCHED): score([1, 1, 1, 0, 1], [0, 1, 1], served_as="adapter"),
    }


def directions() -> dict[Any, Any]:
    sites = [{"layer": 17, "position": -1, "share": 0.7}, {"layer": 16, "position": -2, "share": 0.3}]
    parts = [f"{kind}_{split}" for kind in ("harmful", "harmless") for split in ("train", "validation")]
    base: dict[str, Any] = {
        **{
            "rule": "published",
            "survivors": 3,
            "kl_limit": 0.1,
            "induce": 2.0,
            "kl": 0.05,
            "bypass": -4.0,
            "norm": 7.0,
        },
        "prompts": {name: {"n": 128, "used": 120, "filtered": True} for name in parts},
        "stability": {"same_site": 0.7, "layer_low": 16, "layer_high": 17, "sites": sites},
    }
    return {
        ("small", "original"): {**SITES["original"], **base},
        ("small", "pruned"): {**SITES["own"], **base, "rule": "relaxed_kl"},
    }


def verification(**refusals: float) -> dict[str, Any]:
    """Return what held-out prompts say of a direction, with intervals of 0.1."""
    found = dict(zip(VERIFIED, (0.9, 0.1, 0.0, 0.8), strict=True)) | refusals
    rates = {
        name: {"refusal": value, "refusal_low": value - 0.05, "refusal_high": value + 0.05, "degenerate": 0.2}
        for name, value in found.items()
    }
    return {"rates": rates, "ablation_p_value": 0.001, "addition_p_value": 0.002}


def projection(whose: str, kind: str, direction: str, mean: float) -> dict[str, Any]:
    """Return a projection; standard deviations of both kinds make 5 ** 0.5 together."""
    values = {"n": 128, "mean": mean, "standard_deviation": 1.0 if kind == "harmful" else 3.0}
    return {"states_of": whose, "kind": kind, "direction": direction, **SITES[direction], **values}


def comparisons() -> dict[Any, Any]:
    interval = {"mean": 0.6, "low": 0.5, "high": 0.7}
    means = {
        ("original", "original"): (6.0, 0.0),
        ("compressed", "original"): (1.0, -1.0),
        ("original", "own"): (9.0, 9.0),
        ("compressed", "own"): (3.0, -1.0),
    }
    values = dict(zip(RESAMPLED, (0.55, 0.45, 0.61), strict=True))
    record = {
        **{"site": SITES["original"], **values, **{f"{name}_bootstrap": interval for name in RESAMPLED}},
        "split_half_null": {"mean": 0.9, "low": 0.8, "high": 0.95},
        "own_source_null": {"mean": 0.8, "low": 0.7, "high": 0.85},
        **{"cosine_same_site_shared": 0.56, "cosine_own_source_shared": 0.46},
        **{"cosine_same_site_p_value": 0.001, "cosine_own_source_p_value": 0.002},
        "cosine_same_site_corrected": {"value": 0.63, "low": 0.58, "high": 0.68, "n_harmful": 22, "seed": 0},
        "projections": [
            projection(whose, kind, direction, mean)
            for (whose, direction), pair in means.items()
            for kind, mean in zip(("harmful", "harmless"), pair, strict=True)
        ],
        "sites": [
            {"layer": 0, "position": -1, "cosine": 0.1, "norm_ratio": 0.2},
            {"layer": 1, "position": -1, "cosine": 0.3, "norm_ratio": 0.4},
        ],
    }
    return {("small", "pruned"): record}


RESAMPLED = ("cosine_same_site", "cosine_own_source", "norm_ratio")


def checkpoint(cosine: float, harmful: float, harmless: float) -> dict[str, Any]:
    """Return what a comparison of a patched checkpoint says of one of the three."""
    means = {"harmful": harmful, "harmless": harmless}
    return {
        "corrected_cosine": {"value": cosine, "low": cosine - 0.1, "high": cosine + 0.1, "n_harmful": 128},
        "norm_ratio": cosine / 2,
        "norm_ratio_bootstrap": {"mean": 9.0, "low": 0.2, "high": 0.3},
        "projections": {kind: {"n": 128, "mean": mean, "standard_deviation": 2.0} for kind, mean in means.items()},
    }


RESTORATIONS = {
    PATCHED: {
        "site": SITES["original"],
        "checkpoints": {
            "original": checkpoint(1.0, 6.0, 0.0),
            "compressed": checkpoint(0.5, 2.0, 0.0),
            "patched": checkpoint(0.8, 5.0, 1.0),
        },
        "corrected_cosine_gain": {"value": 0.3, "low": 0.2, "high": 0.4, "undefined": 0},
    }
}
