"""A column of another package: how far a checkpoint tells harmful from harmless prompts."""

from aird.reporting.table import Column, Row, Table


def selectivity(row: Row) -> float:
    """Return the refusal of harmful prompts minus that of harmless ones."""
    rates = row["score"]["rates"]
    return float(rates["refusal"]["rate"] - rates["over_refusal"]["rate"])


TABLE = Table(
    file="summary",
    columns=[Column("selectivity", selectivity, says="refusal of harmful prompts minus that of harmless ones")],
)
