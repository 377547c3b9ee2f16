"""One row per suite, model, compression and patch: the main result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from aird.reporting.judges import ASKED, COHERENT, LABELLING, of_judge
from aird.reporting.records import Records
from aird.reporting.table import SUITE_AND_CELL, Column, Row, Table, at, interval, named, values
from aird.settings.base import ORIGINAL

COSINES = "cosine_same_site cosine_own_source norm_ratio"


def rows(records: Records) -> Iterator[Row]:
    """Yield a row per evaluated cell: its record `score`, and of its checkpoint what else is there.

    That is `direction`, `comparison` (of the base without the patch; restored_directions.csv has the patched
    checkpoints) and `measured`, what its manifest says of all matrices.
    """
    from aird.evaluation.kind_of_loss import kind_of_loss
    from aird.evaluation.utility import mean_utility

    present = records.present
    for key, score in present["scores"].items():
        pair = key[:2]
        utility, stderr = mean_utility(score["questions"])
        # Compared with itself, a checkpoint has its own values before and after.
        own = kind_of_loss(score["labels"], score["labels"])
        # The original agrees with itself.
        itself = dict.fromkeys(COSINES.split(), 1.0) if pair[1] == ORIGINAL else None
        yield {
            **named(key),
            "score": score,
            "auc": own and own.area and own.area.after._asdict(),
            "sensitivity": own and own.sensitivity.after._asdict(),
            "utility": utility,
            "utility_stderr": stderr,
            "comparison": itself or present["comparisons"].get(pair),
            "direction": present["directions"].get(pair),
            "measured": present["manifests"].get(pair, {}).get("total"),
        }


def rate(name: str, says: str, optional: bool = False) -> Column:
    """Return the column of a rate that not every suite has."""
    return Column(name, lambda row: row["score"]["rates"].get(name, {}).get("rate"), says=says, optional=optional)


def merged(name: str, value: Callable[[Row], object], says: str) -> Column:
    """Return a column of grids with patches that are served both as an adapter and merged, from the merged form."""

    def of_merged(row: Row) -> object:
        form = row["score"].get("merged")
        return None if form is None else value(form)

    return Column(f"merged_{name}", of_merged, says=says, optional=True)


def other_labels(form: Row) -> int:
    """Return how many prompts, harmful and harmless, have another label in the merged form."""
    return sum(form["other_labels"].values())


def first_tokens(form: Row) -> float:
    """Return how far the likeliest first tokens differ between both forms; NaN where that was not measured."""
    return math.nan if form["first_tokens"] is None else float(form["first_tokens"]["upper_quartile_difference"])


def engine(row: Row) -> str | None:
    """Return who served a checkpoint."""
    return (row["score"].get("engine") or {}).get("name")


AUC = (
    "how well first tokens of replies tell harmful from harmless prompts: the area under the ROC curve of their "
    "refusal score, the probability that a harmful prompt scores above a harmless one (0.5 is chance; DeLong). "
    "Empty where the engine told too few log-probabilities, or refusals of the original begin as its other replies do"
)
SENSITIVITY = (
    "how well refusals tell harmful from harmless prompts: d' = z(`refusal`) - z(`over_refusal`), half a prompt added "
    "to each count. Empty with fewer than two prompts of a kind"
)
PERPLEXITY = "of the original's own harmless answers; bootstrap over answers"
SERVED_AS = "`plain`; a patch as `adapter`, `merged` or `system_prompt`"
REFUSED = "share of harmful prompts that are refused (Arditi's phrases; Wilson)"
UTILITY = "mean over tasks of their mean (`acc`, else `acc_norm`, `exact_match` or `f1`), standard error"
WEIGHTS = (
    "what the engine computed with: the matrices `as stored`; a `dense copy` of quantised ones that it cannot read on "
    "that machine, where LLM.int8 loses its rounding of activations; the `GGUF file`. Empty of a running server"
)
BOTH = "of the patch merged; these five columns only in a grid with `serve: both`"
TABLE = Table(
    place=10,
    says=__doc__,
    records=("scores", "directions", "comparisons", "manifests"),
    rows=rows,
    columns=[
        *SUITE_AND_CELL,
        *values("served_as", "score", says=SERVED_AS),
        *values("n", "score", "rates", "refusal", says="harmful prompts"),
        *interval("refusal", "score", "rates", "refusal", value="rate", says=REFUSED),
        *(of_judge(name, rate(f"asr_{name}", judge.says))[0] for name, judge in LABELLING.items()),
        rate(COHERENT, says="not refused and not degenerate"),
        *(of_judge(name, rate(f"asr_{name}", judge.says))[0] for name, judge in ASKED.items()),
        *(
            rate(
                f"{refusal}_{name}",
                says="share of harmful or harmless prompts that this judge calls refused",
                optional=True,
            )
            for name, judge in ASKED.items()
            if judge.refusals
            for refusal in ("refusal", "over_refusal")
        ),
        rate("degenerate", says="babble, share of harmful prompts"),
        rate("unfinished", says="whose thought did not end; only in a grid with a model that thinks", optional=True),
        *interval("over_refusal", "score", "rates", "over_refusal", value="rate", says="the same of harmless prompts"),
        *interval("auc", "auc", says=AUC),
        *interval("sensitivity", "sensitivity", says=SENSITIVITY),
        *interval("perplexity", "score", "perplexity", value="perplexity", says=PERPLEXITY),
        *values("utility utility_stderr", says=UTILITY),
        *values(COSINES, "comparison", says="of the checkpoint's direction with the original's"),
        *values("layer position", "direction", says="the direction's site"),
        *values("sparsity bits_per_weight", "measured", says="of the compressed matrices"),
        Column("engine", engine, says="vLLM, llama.cpp, or a running server"),
        Column("weights", lambda row: row["score"].get("weights"), says=WEIGHTS),
        merged("refusal", at("rates", "refusal", "rate"), says=BOTH),
        merged("over_refusal", at("rates", "over_refusal", "rate"), says=BOTH),
        merged("other_labels", other_labels, says="prompts with another label (refused or not) than with the adapter"),
        merged("other_completions", at("other_completions"), says="prompts with another completion"),
        merged("first_token_difference", first_tokens, says="upper quartile of differences of log-probabilities, nats"),
    ],
)
