"""Compress chat checkpoints, and measure on disk what was compressed.

`registry` joins each recipe (its settings: `aird.settings.compressions`) with the function
that does it; `measure` checks a checkpoint against its recipe.
"""
