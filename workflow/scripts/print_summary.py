"""Print the finding in words, the summary table, and where the report is."""

import pandas

from aird.findings import findings
from aird.tables import describe

from arguments import parse

COLUMNS = (
    "compression patch n refusal refusal_low refusal_high over_refusal degenerate perplexity utility "
    "cosine_same_site norm_ratio"
).split()


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="tables report")
    summary, paired, directions = (
        pandas.read_csv(arguments.tables / f"{name}.csv") for name in ("summary", "paired", "directions")
    )
    # Empty text is no suite and no patch, not an unknown one.
    claims = pandas.read_csv(arguments.tables / "claims.csv", keep_default_na=False)
    for (suite, model), rows in summary.groupby(["suite", "model"], sort=False):
        print(f"\n{model}, suite {suite}\n")
        print(describe(rows, COLUMNS))
    print()
    print("\n".join(findings(summary, paired, directions, claims)))
    print("\nHow the verdicts on C1 to C4 are reached: docs/claims.md")
    print(f"\nAll numbers: {arguments.tables}/\nReport:      {arguments.report}")


if __name__ == "__main__":
    main()
