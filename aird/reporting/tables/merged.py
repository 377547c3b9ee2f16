"""What compression bought, before and after a patch is merged into it; made by `snakemake merged_checkpoints`."""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.records import Records
from aird.reporting.table import CELL, Column, Row, Table, named, values


def rows(records: Records) -> Iterator[Row]:
    """Yield what the manifests of a base and of its merged checkpoint say of all compressed matrices."""
    present = records.present
    for cell, manifest in present["merged"].items():
        size = present["patches"][cell]["adapter_bytes"]
        base, merged = present["manifests"][cell[:2]]["total"], manifest["total"]
        filled = list(manifest["zeros_filled"].values())
        yield {
            **named(cell),
            "adapter_bytes": size,
            "edited_matrices": len(filled),
            "zeros_filled": sum(filled) / len(filled) if filled else None,
            **base,
            **{f"{name}_merged": value for name, value in merged.items()},
            "bits_per_weight_with_adapter": 8 * (base["stored_bytes"] + size) / base["weights"],
        }


TABLE = Table(
    place=170,
    says=__doc__,
    rule="make_merged_table",
    records=("manifests", "patches", "merged"),
    rows=rows,
    columns=[
        *CELL,
        *values("adapter_bytes edited_matrices", says="size of the adapter, and how many matrices it edits"),
        Column("zeros_filled", says="mean share of their zeros that are filled; empty without zeros"),
        *values("sparsity sparsity_merged", says="over all compressed matrices"),
        *values(
            "bits_per_weight bits_per_weight_with_adapter bits_per_weight_merged",
            says="of these matrices alone, with the adapter, and merged: edited matrices of a quantised base are dense",
        ),
        *values("stored_bytes stored_bytes_merged", says="bytes of these matrices with scales and tables"),
    ],
)
