"""The forms in which weights are computed with: of an import, an engine, a record, a table or a sentence."""

from __future__ import annotations

from enum import StrEnum


class WeightForm(StrEnum):
    """In which form weights are computed with, beside the files that they came from.

    An import names the form of its folder beside the given files. An engine names the form beside that folder. Where
    an engine computes AS_STORED, a ready-made checkpoint is measured in the form of its import.

    Attributes:
        AS_STORED: the files, byte for byte.
        REPACKED: the same integers and scales, in compressed-tensors' packing.
        DENSE_COPY: dense matrices of the decoded weights. Activations are not rounded.
        GGUF_FILE: the GGUF file itself, by llama.cpp.
        TEXT_MODEL: the text model of a wrapper of vision and language.
    """

    AS_STORED = "as stored"
    REPACKED = "repacked"
    DENSE_COPY = "dense copy"
    GGUF_FILE = "GGUF file"
    TEXT_MODEL = "the text model"
