"""Every job that was ever made in this results folder, of other configurations too, by its last run, the longest first.

Delete `results/benchmarks/` before a run that makes everything, to have its time alone. Figures, cards and the
report have no row.
"""

from __future__ import annotations

from aird.reporting.records import Records
from aird.reporting.table import Column, Row, Table, values


def rows(records: Records) -> list[Row]:
    """Return a row per benchmark file of Snakemake, benchmarks/{stage}/{node}.tsv.

    Jobs on other machines without a shared folder have none here. Of the reporting only the tables count: its other
    jobs run beside this one, and whether their files are there is chance.

    Raises:
        ValueError: a file is no benchmark of Snakemake's; the message names it.
    """
    import pandas

    folder = records.results / "benchmarks"
    found = []
    for path in sorted(folder.rglob("*.tsv")):
        stage, _, node = path.relative_to(folder).with_suffix("").as_posix().partition("/")
        if stage == "reporting" and node != "tables":
            continue
        try:
            last = pandas.read_csv(path, sep="\t", na_values="-").iloc[-1]
            seconds, processor, memory = (float(last[name]) for name in ("s", "cpu_time", "max_rss"))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{path} is no benchmark file of Snakemake ({error}); delete it") from error
        measured = {"seconds": seconds, "processor_seconds": processor, "peak_mib": memory}
        found.append({"stage": stage, "node": node, **measured})
    return sorted(found, key=lambda row: -row["seconds"])


TABLE = Table(
    place=180,
    says=__doc__,
    rule="make_timings",
    rows=rows,
    columns=[
        *values("stage node", says="the rule's stage, and which job of it"),
        *values("seconds processor_seconds", says="by the clock, and of all processors together"),
        Column("peak_mib", says="largest memory"),
    ],
)
