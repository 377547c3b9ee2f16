"""Print the summary table and where the report is."""

import pandas

from aird.tables import describe

from arguments import parse

COLUMNS = (
    "model compression patch n refusal refusal_low refusal_high over_refusal degenerate perplexity utility "
    "cosine_same_site norm_ratio"
).split()


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="table report")
    print()
    print(describe(pandas.read_csv(arguments.table), COLUMNS))
    print(f"\nrefusal: share of harmful prompts refused, with its 95% interval; all numbers: {arguments.table}")
    print(f"report:  {arguments.report}")


if __name__ == "__main__":
    main()
