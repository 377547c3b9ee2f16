"""How much work the quick grid is, and how far its run is from the time of its matrix products alone.

Reads a finished `make demo` (its jobs' seconds, its prompts and completions) and counts the operations of the nodes
that run a model: tokens times matrices, with what they share counted once where this project shares it. Left out are
attention's own products, everything element by element, COSMIC, compressing, loading and imports, so the floor is low.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pandas
import torch

from aird.configuration.loading import load_configuration
from aird.configuration.local_files import load_yaml_strictly
from aird.models.loading import load_tokenizer
from aird.patching.methods.calibrate import Calibrate
from aird.prompts.chat import chat_tokens
from aird.prompts.sets import select_instructions
from aird.settings.base import PromptSelection
from aird.support.files import read_json, read_json_lines
from aird.support.processor import computes_in
from benchmarks.measure import Result, matrix_rate, packed_tokens
from benchmarks.resources import Shape
from benchmarks.workload import MODEL, RESULTS, ROOT, checkpoint


class Work:
    """The operations of each kind of node on the embedded model.

    Attributes:
        layers: of the model.
        block, vocabulary: operations of one token in one block, and of its logits.
    """

    def __init__(self) -> None:
        """Read the configuration and the prompts."""
        self.configuration = load_configuration(load_yaml_strictly(ROOT / "config.yaml"))
        self._tokenizer = load_tokenizer(checkpoint())
        shape = model_shape(read_json(checkpoint() / "config.json"))
        self.layers, self.block, self.vocabulary = shape.layers, 2.0 * shape.block, 2.0 * shape.vocabulary * shape.width
        self.token = self.layers * self.block
        self._records = {
            kind: read_json_lines(RESULTS / "prompts" / f"{kind}.jsonl") for kind in ("harmful", "harmless")
        }

    def prompts(self, kind: str, split: str, count: int) -> list[list[int]]:
        """Return the templated direction prompts of one kind and split."""
        selection = PromptSelection(set=kind, split=split, count=count)
        texts = select_instructions(self._records[kind], selection, self.configuration.seed)
        return [chat_tokens(self._tokenizer, text) for text in texts]

    def replies(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> float:
        """Return the operations of greedy replies of this length."""
        return (packed_tokens(prompts) + len(prompts) * new_tokens) * self.token + len(
            prompts
        ) * new_tokens * self.vocabulary

    def learning(
        self, prompts: Sequence[Sequence[int]], answer: int, compared: int, first_block: int, epochs: int
    ) -> float:
        """Return the operations of learning from answers: the lower blocks once, the upper ones both ways per epoch.

        Args:
            prompts: of the examples.
            answer: tokens of each answer.
            compared: tokens of each example whose logits count.
            first_block: the lowest that is learnt in.
            epochs: how many.
        """
        seen = packed_tokens(prompts) + len(prompts) * answer
        upper = seen * (self.layers - first_block) * self.block + len(prompts) * compared * self.vocabulary
        return seen * first_block * self.block + epochs * 2 * upper

    def tuning(self) -> float:
        """Own answers, then learning from them and from refusals."""
        tuning = self.configuration.models[MODEL].refusal_tuning
        assert tuning is not None
        harmful, harmless = (
            self.prompts(kind, "train", count)
            for kind, count in (("harmful", tuning.harmful.count or 0), ("harmless", tuning.harmless.count or 0))
        )
        answer, examples = tuning.maximum_answer_tokens, [*harmful, *harmless]
        return self.replies(harmless, answer) + self.learning(
            examples, answer, answer, tuning.first_block, tuning.epochs
        )

    def capture(self) -> float:
        """The direction prompts of both kinds."""
        directions = self.configuration.directions
        sizes = {"train": directions.train, "validation": directions.validation}
        return self.token * sum(
            packed_tokens(self.prompts(kind, split, count)) for kind in self._records for split, count in sizes.items()
        )

    def scoring(self, compression: str) -> float:
        """An addition runs from its layer on; where it leaves a candidate eligible two whole passes follow."""
        directions = self.configuration.directions
        count = directions.scored or directions.validation
        harmful, harmless = (packed_tokens(self.prompts(kind, "validation", count)) for kind in self._records)
        scores = pandas.read_csv(RESULTS / "directions" / MODEL / compression / "scores.csv")
        added = scores[scores["induce"].notna()]["layer"]
        blocks = float((self.layers - added).sum()) * harmless
        return blocks * self.block + int(scores["kl"].notna().sum()) * (harmful + harmless) * self.token

    def verification(self) -> float:
        """Plain and changed, harmful and harmless."""
        directions = self.configuration.directions
        return sum(
            2 * self.replies(self.prompts(kind, "test", directions.test), directions.test_new_tokens)
            for kind in self._records
        )

    def calibration(self, compression: str, patch: str) -> float:
        """What the checkpoint replies, learning, and the strengths that were tried."""
        sizes, settings = self.configuration.replies, self.configuration.patches[patch]
        assert isinstance(settings, Calibrate)
        harmful, harmless = (
            self.prompts(kind, "train", count)
            for kind, count in (("harmful", sizes.train_harmful), ("harmless", sizes.train_harmless))
        )
        validation = [self.prompts(kind, "validation", sizes.validation) for kind in self._records]
        judged = [self.replies(prompts, sizes.judged_tokens) for prompts in validation]
        record = read_json(RESULTS / "patches" / MODEL / compression / patch / "statistics.json")
        first, compared = min(record["blocks"]), sizes.tokens + 1
        learnt = self.learning([*harmful, *harmless], sizes.tokens, compared, first, settings.epochs)
        return self.replies(harmless, compared) + learnt + (1 + len(record["calibration"]["tried"])) * sum(judged)

    def evaluation(self, compression: str, patch: str) -> float:
        """Completions; log-probabilities of harmless answers and of the questions' answers, with their prompts."""
        (name, suite) = next(iter(self.configuration.suites.items()))
        original, own = (
            read_json_lines(RESULTS / "completions" / MODEL / base / of / f"{name}.jsonl")
            for base, of in (("original", "plain"), (compression, patch))
        )
        prompt = {record["id"]: len(chat_tokens(self._tokenizer, record["instruction"])) for record in own}
        new = sum(record["tokens"] for record in own)
        answers = [record for record in original if record["kind"] == "harmless"][: suite.perplexity_answers]
        questions = read_json_lines(ROOT / "resources" / "everyday_choices" / "questions.jsonl")[: suite.task_limit]
        rated = sum(prompt[record["id"]] + record["tokens"] for record in answers)
        rated += sum(
            len(self._tokenizer(f"{question['query']} {choice}")["input_ids"])
            for question in questions
            for choice in question["choices"]
        )
        return (sum(prompt.values()) + new + rated) * self.token + (new + rated) * self.vocabulary


def model_shape(config: dict[str, Any]) -> Shape:
    """Return the sizes of a checkpoint of Llama's structure."""
    heads = config["num_attention_heads"]
    return Shape(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        heads,
        config["num_key_value_heads"],
        config.get("head_dim") or config["hidden_size"] // heads,
        config["vocab_size"],
    )


# Kind of job -> what its "stage/model/node" in timings.csv matches, and its operations from the groups of the match.
KINDS: dict[str, tuple[str, Callable[..., float]]] = {
    "refusal tuning": (r"models/[^/]+/tune_refusal", Work.tuning),
    "captures": (r"activations/[^/]+/(?!refusal_tokens)[^/]+", Work.capture),
    "scoring": (r"directions/[^/]+/([^/]+)/scores", Work.scoring),
    "verification": (r"directions/[^/]+/[^/]+/verification", Work.verification),
    "calibration": (r"patches/[^/]+/([^/]+)/(aird-calibrated)", Work.calibration),
    "evaluation": (r"evaluation/[^/]+/([^/]+)/([^/]+)/safety", Work.evaluation),
}


def run() -> list[Result]:
    """Compare the seconds of a finished run's jobs with the floor of their arithmetic."""
    timings = pandas.read_csv(RESULTS / "tables" / "timings.csv")
    names = timings["stage"] + "/" + timings["node"]
    # A job with two threads takes more of the processor than its own seconds.
    seconds = timings[["seconds", "processor_seconds"]].max(axis=1)
    fast, slow = matrix_rate(getattr(torch, computes_in("bfloat16"))), matrix_rate(torch.float32)
    work = Work()
    counted, floors, taken = {}, {}, {}
    for kind, (pattern, operations) in KINDS.items():
        jobs = [(re.fullmatch(pattern, name), time) for name, time in zip(names, seconds, strict=True)]
        # The tuning computes in float32 everywhere.
        rate = slow if kind == "refusal tuning" else fast
        counted[kind] = sum(operations(work, *match.groups()) for match, _ in jobs if match)
        floors[kind] = counted[kind] / rate
        taken[kind] = sum(time for match, time in jobs if match)
    total, floor = float(seconds.sum()), sum(floors.values())
    parts = ", ".join(
        f"{kind} {counted[kind] / 1e12:.1f} TFLOP, {floors[kind] / 60:.1f} of {taken[kind] / 60:.1f} min"
        for kind in KINDS
    )
    return [
        Result(
            "make demo: all jobs",
            None,
            float(timings["peak_mib"].max()),
            floor / total,
            f"{sum(counted.values()) / 1e12:.1f} TFLOP of matrix products; {len(timings)} jobs, {total / 60:.1f} min "
            f"of one core, of which the products alone {floor / 60:.1f} min at {fast / 1e9:.0f} GFLOP/s "
            f"({slow / 1e9:.0f} in float32): {parts}; all others {(total - sum(taken.values())) / 60:.1f} min",
        )
    ]
