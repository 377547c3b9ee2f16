"""What `direction`, `compare` and `patch` share: how a direction is searched on the spot, and told in a few lines.

The search itself is aird/directions/search.py; here are its arguments, its prompt files, and where it came from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aird.commands.inputs import ModelFolder, validated
from aird.commands.prompt_files import add_prompt_arguments, prompt_files, read_prompts, with_splits
from aird.prompts.sets import CLASSES, Record
from aird.settings.directions import Directions
from aird.settings.patches import Replies
from aird.support.files import read_json, write_json

if TYPE_CHECKING:
    from aird.directions.refusal_tokens import RefusalTokens
    from aird.directions.search import Search

PROVENANCE = "provenance.json"


def add_search_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the prompts and the sizes and filters of a search."""
    add_prompt_arguments(parser, required, " that the direction is found with")
    parser.add_argument(
        "--train", type=int, default=128, help="prompts per class for the difference in means (default: %(default)s)"
    )
    parser.add_argument(
        "--validation",
        type=int,
        default=32,
        help="prompts per class for choosing among candidates (default: %(default)s)",
    )
    parser.add_argument("--maximum-kl", type=float, default=0.1, help="KL limit of a candidate, nats (default: 0.1)")
    parser.add_argument(
        "--minimum-induce", type=float, default=0.0, help="least refusal score that adding it induces (default: 0)"
    )


def calibrated_from(arguments: argparse.Namespace) -> Replies:
    """Return how many prompts a calibration learns from and is chosen by, in the workflow's proportions.

    They are as many harmful prompts as a direction is made from, twice as many harmless ones, and twice as many of both
    to choose by. With the defaults of --train and --validation that is what the workflow takes.

    Raises:
        ValueError: too few.
    """
    train, validation = arguments.train, arguments.validation
    if train < 8 or validation < 4:
        raise ValueError(
            f"--train {train} --validation {validation}: a calibration needs at least --train 8 and --validation 4"
        )
    return Replies(train_harmful=train, train_harmless=2 * train, validation=2 * validation)


def read_search_prompts(
    arguments: argparse.Namespace, replies: Replies | None = None, validation: bool = True
) -> dict[str, list[Record]]:
    """Return the direction prompts of both classes, with splits.

    Args:
        arguments: of the command.
        replies: how many prompts a calibration needs of these splits; the direction's are then a part of them.
        validation: whether a validation split is needed at all.

    Raises:
        ValueError: a file is missing, unreadable or too short.
    """
    prompts = {}
    for kind in CLASSES:
        path = getattr(arguments, kind)
        if path is None:
            raise ValueError(f"--{kind} is missing: a direction is found from harmful and harmless instructions")
        sizes = {"train": arguments.train, "validation": arguments.validation}
        if replies is not None:
            sizes = {"train": getattr(replies, f"train_{kind}"), "validation": replies.validation}
        if not validation:
            del sizes["validation"]
        prompts[kind] = with_splits(read_prompts(path, kind, arguments.field), kind, sizes, arguments.seed)
    return prompts


def search_settings(arguments: argparse.Namespace) -> Directions:
    """Return the sizes and filters that the arguments give.

    Raises:
        ValueError: one that cannot be.
    """
    names = ("train", "validation", "maximum_kl", "minimum_induce")
    return validated(
        Directions, {**{kind: kind for kind in CLASSES}, **{name: getattr(arguments, name) for name in names}}
    )


def run_search(
    model: ModelFolder,
    prompts: dict[str, list[Record]],
    settings: Directions,
    seed: int,
    refusal_tokens: RefusalTokens | None = None,
) -> Search:
    """Return the `Search` of a model's direction."""
    from aird.directions.search import search_direction
    from aird.models.loading import load_model, load_tokenizer

    print(f"Searching the refusal direction of {model.name} ...", flush=True)
    tokenizer, loaded = load_tokenizer(model.folder), load_model(model.folder)
    return search_direction(loaded, tokenizer, prompts, settings, seed, refusal_tokens)


def write_search(search: Search, model: ModelFolder, arguments: argparse.Namespace, folder: Path) -> None:
    """Write a `Search` to a folder, with its model and the prompt files that the arguments named."""
    from aird.directions.search import save_search

    settings = search_settings(arguments)
    save_search(search, folder)
    write_json(
        folder / PROVENANCE,
        {
            "model": model.record(),
            "prompts": prompt_files(arguments),
            "seed": arguments.seed,
            "settings": settings.model_dump(include={"train", "validation", "maximum_kl", "minimum_induce"}),
        },
    )


def read_provenance(folder: Path) -> dict[str, Any]:
    """Return what a direction folder says about its model and prompts; empty for one of the workflow's."""
    path = folder / PROVENANCE
    return dict(read_json(path)) if path.is_file() else {}


def describe(search: Search) -> str:
    """Return the result of a `Search` in a few lines."""
    record, tokens = search.direction.record, search.refusal_tokens
    used = {name: f"{counts['used']} of {counts['n']}" for name, counts in record["prompts"].items()}
    lines = [
        f"  site            layer {record['layer']} of {record['layers']}, position {record['position']}",
        f"  chosen by       {record['rule']}, {record['survivors']} of {record['candidates']} candidates passed",
        f"  prompts kept    harmful {used['harmful_train']}, harmless {used['harmless_train']}",
        f"  norm            {record['norm']:.3g}",
    ]
    if record["rule"] != "published":
        lines.append("  note            no candidate passes the published filters: this is the reported fallback")
    if not tokens["derived"]:
        from aird.directions.refusal_tokens import why_none

        lines.append(
            f"  note            {why_none(tokens['refusals'])}, so the refusal tokens are a guess: "
            "does this model refuse at all?"
        )
    return "\n".join(lines)
