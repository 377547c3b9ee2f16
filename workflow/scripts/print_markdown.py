"""Print the summary and the directions as Markdown: `make tables` (the README's and docs/results.md's come from it)."""

import pandas

from aird.markdown import directions_markdown, summary_markdown

from arguments import parse


def main() -> None:
    """Run the script."""
    arguments = parse(__doc__, paths="tables")
    print(summary_markdown(pandas.read_csv(arguments.tables / "summary.csv")), end="\n\n")
    print(directions_markdown(pandas.read_csv(arguments.tables / "directions.csv")))


if __name__ == "__main__":
    main()
