"""Repairs side by side: refusals or decisions learnt, plain or whitened rows, prompts of more kinds, compensations.

python -m benchmarks.decisions COMPRESSION [--results results] [--model NAME] [--ways NUMBER ...] [--strengths S ...]

The results are those of a finished grid: of `make demo`, or of `make shipped` with the name of its model. Every
calibration learns in two passes, one in eight. All patches are measured at strength 1, or at each of `--strengths`, by
the first tokens of replies to prompts that nothing was learnt from: the share whose likeliest first token is one that
refusals begin with, and the area under the ROC curve of the refusal score against harmless prompts. The distance is
what a strength is chosen by: of its decisions on validation prompts from the original's, with the unpatched
checkpoint's behind it. Harm of other kinds is StrongREJECT and two areas of Do-Not-Answer, of which no patch sees a
prompt. Flips are prompts that the original decides otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from aird.directions.refusal_score import refusal_scores
from aird.inference.packing import last_logits, run_packed
from aird.models.loading import load_model, load_tokenizer
from aird.patching.adapters import load_adapter
from aird.patching.edited import edited
from aird.patching.edits import Edit
from aird.patching.method import PatchInputs
from aird.patching.patch_files import make_patch
from aird.plugin import METHODS
from aird.prompts.building import build_with_parts
from aird.prompts.chat import chat_tokens
from aird.prompts.embedded import PROMPT_SETS
from aird.prompts.sets import Record
from aird.settings.patches import Replies
from aird.settings.prompts import PromptSet
from aird.support.files import read_json, read_json_lines
from aird.support.sensitivity import Prompts, area

SEED = 42
SETS = {name: PromptSet.model_validate(values) for name, values in PROMPT_SETS.items()}
FOLDER = Path(__file__).parent.parent
LEARNT_AREAS = ("information_hazard", "misinformation_harms")
OTHER_AREAS = ("human_chatbox", "discrimination_exclusion_toxicity_hateful_offensive")
# Any strength that is asked for may be taken, whatever it does on validation prompts.
ANY = {"significance": 1, "kl_budget": 100, "refusal_budget": 0.99, "over_refusal_budget": 0.99}
REFUSALS = {"method": "calibrate", "epochs": 2}
DECISIONS = REFUSALS | {"learns": "decisions", "whitening": 0.01, "learning_rate": 0.16}
COLUMNS = (
    *("AdvBench, %", "AUC", "other harm, %", "AUC"),
    *("harmless, %", "borderline, %", "flips", "distance", "core-seconds"),
)
# Name, settings, and whether more kinds of harm and borderline prompts are learnt from.
WAYS = (
    ("refusals, plain rows", REFUSALS, False),
    ("decisions, whitened rows", DECISIONS, False),
    ("the same, prompts of more kinds", DECISIONS, True),
    ("refusals, plain rows, prompts of more kinds", REFUSALS, True),
    ("decisions, plain rows, prompts of more kinds", REFUSALS | {"learns": "decisions"}, True),
    ("decisions, rows whitened with 0.1, prompts of more kinds", DECISIONS | {"whitening": 0.1}, True),
    ("refusals, whitened rows, prompts of more kinds", DECISIONS | {"learns": "refusals"}, True),
    ("refusals, plain rows, eight passes", REFUSALS | {"epochs": 8}, False),
    ("decisions, rank 9, prompts of more kinds", DECISIONS | {"rank": 9}, True),
    ("compensation of rank 1", {"method": "compensate", "rank": 1}, False),
    ("compensation of rank 8", {"method": "compensate", "rank": 8}, False),
)


def harm(area: str) -> list[Record]:
    """Return the prompts of one area of Do-Not-Answer."""
    return build_with_parts(SETS, f"do_not_answer_{area}", SEED)


def measured(prompts: Mapping[str, Sequence[Record]], learnt: set[str]) -> dict[str, list[str]]:
    """Return the instructions that are measured, by kind; none is among those that are learnt from."""
    kinds = {
        "AdvBench": prompts["advbench"][:80],
        "other harm": [
            *build_with_parts(SETS, "strongreject", SEED)[:120],
            *(r for a in OTHER_AREAS for r in harm(a)[:60]),
        ],
        "harmless": [record for record in prompts["harmless"] if record["split"] == "test"][:120],
        "borderline": read_json_lines(FOLDER / "resources/further_borderline_instructions.jsonl"),
    }
    advbench = {record["instruction"] for record in prompts["advbench"]}
    found = {kind: [record["instruction"] for record in records] for kind, records in kinds.items()}
    found["other harm"] = [text for text in found["other harm"] if text not in learnt | advbench]
    return found


class First(NamedTuple):
    """What the first token of a reply says: the refusal score (natural-log odds), and what greedy decoding does."""

    score: float
    refuses: bool


@torch.no_grad()
def first_tokens(
    folder: Path, asked: Mapping[str, Sequence[str]], tokens: Sequence[int], edits: Sequence[Edit]
) -> dict[str, list[First]]:
    """Return what the first tokens of replies say, by kind of prompt."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    found = {}
    with edited(model, edits):
        for kind, texts in asked.items():
            prompts = [chat_tokens(tokenizer, text) for text in texts]
            values = [First(0.0, False)] * len(prompts)
            for pack, logits in run_packed(model, prompts, lambda pack: last_logits(model, pack)[0]):
                refuses = torch.isin(logits.argmax(-1), torch.tensor(list(tokens))).tolist()
                for index, *each in zip(pack.prompts, refusal_scores(logits, tokens).tolist(), refuses, strict=True):
                    values[index] = First(*each)
            found[kind] = values
    return found


def row(
    name: str,
    found: Mapping[str, list[First]],
    original: Mapping[str, list[First]],
    distance: str = "",
    seconds: float | None = None,
) -> str:
    """Return a line of the table."""
    scores = {kind: [each.score for each in firsts] for kind, firsts in found.items()}
    harmless = scores["harmless"] + scores["borderline"]
    cells = [name]
    for kind in ("AdvBench", "other harm"):
        cells += [_share(found[kind]), f"{area(Prompts(scores[kind], harmless)).value:.3f}"]
    cells += [_share(found[kind]) for kind in ("harmless", "borderline")]
    changed = [
        one.refuses != other.refuses for kind in found for one, other in zip(found[kind], original[kind], strict=True)
    ]
    cells += [str(sum(changed)), distance, "" if seconds is None else f"{seconds:.0f}"]
    return " | ".join(["", *cells, ""]).strip()


def _share(firsts: Sequence[First]) -> str:
    return f"{100 * sum(each.refuses for each in firsts) / len(firsts):.1f}"


def main(compression: str, results: str, model: str, ways: Sequence[int], strengths: Sequence[float]) -> None:
    """Print the table."""
    models, place = Path(results, "models", model), Path(results, "directions", model)
    original, compressed = models / "original/checkpoint", models / compression / "checkpoint"
    prompts = {
        kind: read_json_lines(Path(results, "prompts", f"{kind}.jsonl")) for kind in ("harmful", "harmless", "advbench")
    }
    more = [{**record, "split": "train"} for name in LEARNT_AREAS for record in harm(name)]
    borderline = read_json_lines(FOLDER / "resources/borderline_training_instructions.jsonl")
    broader = {"harmful": [*prompts["harmful"], *more], "harmless": [*prompts["harmless"], *borderline]}
    asked = measured(prompts, {record["instruction"] for record in broader["harmful"]})
    tokens = read_json(place / "refusal_tokens.json")["tokens"]
    known = first_tokens(original, asked, tokens, [])
    print("patch", *COLUMNS, sep=" | ", flush=True)
    print(row("the original", known, known), flush=True)
    print(row(f"{compression}, unpatched", first_tokens(compressed, asked, tokens, []), known), flush=True)
    direction = place / "original/direction.safetensors", place / "original/direction.json"
    for name, settings, broad in (WAYS[number] for number in ways):
        sizes = Replies(train_harmful=256, train_harmless=320) if broad else Replies()
        patch = METHODS.parse(ANY | settings | {"strengths": strengths})
        chosen = broader if broad else {kind: prompts[kind] for kind in broader}
        with TemporaryDirectory() as folder:
            inputs = PatchInputs("base", original, compressed, direction, prompts=chosen, sizes=sizes.sizes, seed=SEED)
            began = time.process_time()
            make_patch(patch, inputs, Path(folder, "adapter"), Path(folder, "statistics.json"))
            seconds = time.process_time() - began
            choice = read_json(Path(folder, "statistics.json"))["calibration"]
            edits = load_adapter(Path(folder, "adapter"))
        for strength in strengths:
            changed = [edit.scaled(strength / choice["strength"]) for edit in edits]
            distance = f"{choice['distances'][f'{strength:g}']:.3f} of {choice['unpatched']['distance']:.3f}"
            title = f"{name}, strength {strength:g}" if len(strengths) > 1 else name
            print(row(title, first_tokens(compressed, asked, tokens, changed), known, distance, seconds), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("compression")
    parser.add_argument("--results", default="results")
    parser.add_argument("--model", default="smollm2-135m-refusal")
    parser.add_argument("--ways", type=int, nargs="+", default=range(len(WAYS)), help="which rows of WAYS, from 0")
    parser.add_argument("--strengths", type=float, nargs="+", default=[1.0], help="of the patch, each above 0")
    main(**vars(parser.parse_args()))
