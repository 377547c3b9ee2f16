"""Whether the weights of a checkpoint may be edited, by its manifest.

A module of its own: what makes a patch depends on it, and not on how a checkpoint is imported and measured.
"""

from __future__ import annotations

from collections.abc import Mapping


def check_patchable(manifest: Mapping[str, object]) -> None:
    """Check that weights of the checkpoint with this manifest may be edited.

    Raises:
        ValueError: it can be measured but not patched; says why.
    """
    if not manifest.get("patchable", True):
        raise ValueError(
            f"this checkpoint can be measured but not patched: {manifest['not_patchable_because']}; name the other "
            "compressions in the patch's `compressions`"
        )
