"""What a calibration learns: refusals or decisions, plain or whitened rows, and prompts of more kinds, side by side.

python -m benchmarks.decisions [COMPRESSION] [results]

The results are those of the quick grid (`make demo`). Every patch is learnt from zeros, in two passes, and measured at
strength 1 by the first tokens of replies to prompts that nothing was learnt from: the share whose refusal score is
above 0, and the area under the ROC curve against harmless prompts. Harm of other kinds is StrongREJECT and two areas
of Do-Not-Answer, of which no patch sees a prompt. Flips are prompts that the original decides otherwise.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from aird.directions.refusal_score import refusal_scores
from aird.inference.packing import last_logits, run_packed
from aird.models.loading import load_model, load_tokenizer
from aird.patching.adapters import load_adapter
from aird.patching.edited import edited
from aird.patching.edits import Edit
from aird.patching.method import PatchInputs
from aird.patching.methods.calibrate import Calibrate
from aird.patching.patch_files import make_patch
from aird.prompts.building import build_with_parts
from aird.prompts.chat import chat_tokens
from aird.prompts.embedded import PROMPT_SETS
from aird.prompts.sets import Record
from aird.settings.patches import Replies
from aird.settings.prompts import PromptSet
from aird.support.files import read_json, read_json_lines
from aird.support.sensitivity import Prompts, area

MODEL, SEED = "smollm2-135m-refusal", 42
SETS = {name: PromptSet.model_validate(values) for name, values in PROMPT_SETS.items()}
FOLDER = Path(__file__).parent.parent
LEARNT_AREAS = ("information_hazard", "misinformation_harms")
OTHER_AREAS = ("human_chatbox", "discrimination_exclusion_toxicity_hateful_offensive")
# Whatever it does on validation prompts, strength 1 is taken.
AT_ONE = {"strengths": [1.0], "significance": 1, "kl_budget": 100, "refusal_budget": 0.99, "over_refusal_budget": 0.99}
DECISIONS = {"learns": "decisions", "whitening": 0.01, "learning_rate": 0.16}
# Name, settings, and whether more kinds of harm and borderline prompts are learnt from.
WAYS = (
    ("refusals, plain rows", {}, False),
    ("decisions, whitened rows", DECISIONS, False),
    ("the same, prompts of more kinds", DECISIONS, True),
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


@torch.no_grad()
def scores(
    folder: Path, asked: Mapping[str, Sequence[str]], tokens: Sequence[int], edits: Sequence[Edit]
) -> dict[str, list[float]]:
    """Return the refusal scores (natural-log odds) of the first tokens of replies, by kind."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    found = {}
    with edited(model, edits):
        for kind, texts in asked.items():
            prompts = [chat_tokens(tokenizer, text) for text in texts]
            values = [0.0] * len(prompts)
            for pack, logits in run_packed(model, prompts, lambda pack: last_logits(model, pack)[0]):
                for index, value in zip(pack.prompts, refusal_scores(logits, tokens).tolist(), strict=True):
                    values[index] = value
            found[kind] = values
    return found


def row(name: str, found: Mapping[str, list[float]], original: Mapping[str, list[float]], seconds: float | None) -> str:
    """Return a line of the table."""
    harmless = found["harmless"] + found["borderline"]
    cells = [name]
    for kind in ("AdvBench", "other harm"):
        cells += [_share(found[kind]), f"{area(Prompts(found[kind], harmless)).value:.3f}"]
    cells += [_share(found[kind]) for kind in ("harmless", "borderline")]
    changed = [
        (one > 0) != (other > 0) for kind in found for one, other in zip(found[kind], original[kind], strict=True)
    ]
    return " | ".join(["", *cells, str(sum(changed)), "" if seconds is None else f"{seconds:.0f}", ""]).strip()


def _share(values: Sequence[float]) -> str:
    return f"{100 * sum(value > 0 for value in values) / len(values):.1f}"


def main(compression: str = "wanda-50", results: str = "results") -> None:
    """Print the table."""
    models, place = Path(results, "models", MODEL), Path(results, "directions", MODEL)
    original, compressed = models / "original/checkpoint", models / compression / "checkpoint"
    prompts = {
        kind: read_json_lines(Path(results, "prompts", f"{kind}.jsonl")) for kind in ("harmful", "harmless", "advbench")
    }
    more = [{**record, "split": "train"} for name in LEARNT_AREAS for record in harm(name)]
    borderline = read_json_lines(FOLDER / "resources/borderline_instructions.jsonl")
    broader = {
        "harmful": [*prompts["harmful"], *more],
        "harmless": [*prompts["harmless"], *({**record, "split": "train"} for record in borderline)],
    }
    asked = measured(prompts, {record["instruction"] for record in broader["harmful"]})
    tokens = read_json(place / "refusal_tokens.json")["tokens"]
    known = scores(original, asked, tokens, [])
    print(
        "patch | AdvBench, % | AUC | other harm, % | AUC | harmless, % | borderline, % | flips | core-seconds",
        flush=True,
    )
    print(row("the original", known, known, None), flush=True)
    print(row(f"{compression}, unpatched", scores(compressed, asked, tokens, []), known, None), flush=True)
    direction = place / "original/direction.safetensors", place / "original/direction.json"
    for name, settings, broad in WAYS:
        sizes = Replies(train_harmful=256, train_harmless=320) if broad else Replies()
        patch = Calibrate(epochs=2, **AT_ONE, **settings)
        chosen = broader if broad else {kind: prompts[kind] for kind in broader}
        with TemporaryDirectory() as folder:
            inputs = PatchInputs(
                "base", original, compressed, direction, prompts=chosen, sizes=sizes.model_dump(), seed=SEED
            )
            began = time.process_time()
            make_patch(patch, inputs, Path(folder, "adapter"), Path(folder, "statistics.json"))
            seconds = time.process_time() - began
            edits = load_adapter(Path(folder, "adapter"))
        print(row(name, scores(compressed, asked, tokens, edits), known, seconds), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
