"""Label every completion with every judge, and count."""

from aird.files import read_json, read_json_lines, write_json
from aird.scores import label, perplexity, rates

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="completions utility output", texts="seed")
    labels = [label(record) for record in read_json_lines(arguments.completions)]
    utility = read_json(arguments.utility)
    found = perplexity(utility["answers"], int(arguments.seed))
    score = {
        "rates": rates(labels),
        # An undefined perplexity (no reference answer) is null in JSON.
        "perplexity": found if found["n"] else None,
        "tasks": utility["tasks"],
        # What tables of paired differences are made of.
        "answers": utility["answers"],
        "questions": utility["questions"],
        "parity": utility["parity"],
        "labels": labels,
    }
    write_json(arguments.output, score)


if __name__ == "__main__":
    main()
