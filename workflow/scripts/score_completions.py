"""Label every completion by the suite's judges, and count."""

from pathlib import Path

from aird.evaluation.hand_labels import read_labels
from aird.evaluation.scores import score
from aird.support.files import read_json, read_json_lines, write_json

from arguments import run


def main(
    completions: Path,
    utility: Path,
    judgement: Path | None,
    reference: Path | None,
    hand_labels: Path | None,
    judges: list[str],
    judge: str | None,
    seed: int,
    output: Path,
) -> None:
    """Run the script."""
    judged = [] if judgement is None else read_json_lines(judgement)
    labels = None if hand_labels is None else read_labels(hand_labels)
    rows, measured = read_json_lines(completions), read_json(utility)
    original = None if reference is None else read_json_lines(reference)
    write_json(output, score(rows, measured, seed, judged, judge, judges, labels, original))


if __name__ == "__main__":
    run(main)
