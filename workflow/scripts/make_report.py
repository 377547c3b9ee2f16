"""Write the report: one HTML file, from tables, figures and records."""

from pathlib import Path

from aird.reporting.report.page import Sources, write_report

from arguments import run


def main(
    tables: list[Path],
    timings: Path,
    figures: list[Path],
    captions: list[Path],
    manifests: list[Path],
    records: list[Path],
    arithmetic: Path,
    locks: list[Path],
    settings: dict[str, object],
    command: str,
    output: Path,
) -> None:
    """Run the script."""
    sources = Sources(tables, timings, figures, captions, manifests, records, arithmetic, locks, settings, command)
    write_report(output, sources)


if __name__ == "__main__":
    run(main)
