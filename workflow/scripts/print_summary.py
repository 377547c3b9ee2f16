"""Print the summary table, the finding in words, the verdicts, and where the report is."""

import shutil
import textwrap
from pathlib import Path

import yaml
from snakemake.utils import update_config

from aird.configuration.loading import load_configuration
from aird.reporting.claims.statement import read_statements
from aird.reporting.figures.drawing import read_table
from aird.reporting.markdown import describe
from aird.reporting.sentences.attacks import attack_sentences
from aird.reporting.sentences.headlines import headlines
from aird.reporting.sentences.verdicts import verdict_sentences

from arguments import call

COLUMNS = (
    "compression patch n refusal refusal_low refusal_high over_refusal auc degenerate perplexity utility "
    "cosine_same_site"
).split()


def main(tables: Path, report: Path, configuration: list[Path]) -> None:
    """Run the script; later configurations change earlier ones, as with --configfile."""
    values: dict[str, object] = {}
    for path in configuration:
        update_config(values, yaml.safe_load(path.read_text(encoding="utf-8")))
    settings = load_configuration(values).model_dump()
    summary, paired, attacks, resistance = (
        read_table(tables / f"{name}.csv") for name in ("summary", "paired", "attacks", "resistance")
    )
    claims = read_statements(tables / "claims.csv")
    for (suite, model), rows in summary.groupby(["suite", "model"], sort=False):
        print(f"\n{model}, suite {suite}\n")
        print(describe(rows, COLUMNS))
    print()
    width = shutil.get_terminal_size().columns
    finding = headlines(summary, paired, claims, settings)
    attacked = list(attack_sentences(summary, attacks, resistance, settings))
    for sentence in (*finding, "", *attacked, *[""] * bool(attacked), *verdict_sentences(claims)):
        print(textwrap.fill(sentence, width, subsequent_indent="  ", break_on_hyphens=False))
    print("\nHow the verdicts on C1 to C5 are reached: docs/claims.md")
    print(f"\nAll numbers: {tables}/\nReport:      {report}")


if __name__ == "__main__":
    call(main)
