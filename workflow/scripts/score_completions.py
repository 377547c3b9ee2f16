"""Label every completion with every judge, and count."""

from pathlib import Path

from aird.evaluation.hand_labels import read_labels
from aird.evaluation.scores import score
from aird.support.files import read_json, read_json_lines, write_json

from arguments import run


def main(
    completions: Path, utility: Path, judgement: Path | None, hand_labels: Path | None, seed: int, output: Path
) -> None:
    """Run the script."""
    judged = None if judgement is None else read_json_lines(judgement)
    labels = None if hand_labels is None else read_labels(hand_labels)
    write_json(output, score(read_json_lines(completions), read_json(utility), seed, judged, labels))


if __name__ == "__main__":
    run(main)
