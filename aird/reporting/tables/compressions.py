"""What was measured on each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from aird.reporting.records import Records
from aird.reporting.table import PAIR, Column, Row, Table, named, values
from aird.settings.base import PLAIN
from aird.settings.weights import WeightForm

MEASURED = "sparsity bits_per_weight sparse_bits_per_weight relative_error weights stored_bytes".split()
TOKENS = "calibration_tokens"


def rows(records: Records) -> Iterator[Row]:
    """Yield what each manifest says of all matrices, and in which form the plain checkpoint was served."""
    # A patch may need a dense copy where the checkpoint alone does not.
    scores = records.present["scores"].items()
    computed_with = {key[:2]: score.get("weights") for key, score in scores if key[2] == PLAIN}
    for pair, manifest in records.present["manifests"].items():
        measured = manifest.get("total", {})
        formats = ", ".join(measured.get("formats", []))
        served_as = computed_with.get(pair)
        if "served_as" not in manifest or served_as == WeightForm.AS_STORED:
            served_as = manifest.get("served_as")
        yield {
            **named(pair),
            **dict.fromkeys(MEASURED),
            **measured,
            "formats": formats,
            TOKENS: manifest.get(TOKENS),
            "served_as": served_as,
        }


TABLE = Table(
    place=150,
    says=__doc__,
    records=("manifests", "scores"),
    rows=rows,
    columns=[
        *PAIR,
        *values("sparsity bits_per_weight", says="over all compressed matrices"),
        Column("sparse_bits_per_weight", says="what a 1-bit mask and the non-zeros of a dense matrix would take"),
        Column("relative_error", says="norm of W_c - W_o over that of W_o; empty where one was rescaled or rotated"),
        *values("weights stored_bytes", says="number of weights in these matrices, their bytes with scales and tables"),
        Column("formats", says="how they are stored"),
        Column(TOKENS, dtype="Int64", says="tokens that the recipe was calibrated on; empty where it sees none"),
        Column(
            "served_as",
            says="of a [ready-made checkpoint](checkpoints.md#what-is-read) without a patch: `as stored`, `repacked`, "
            "`dense copy` or `GGUF file`. Empty of a running server",
        ),
    ],
)
