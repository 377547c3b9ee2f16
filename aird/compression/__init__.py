"""Compress chat checkpoints, and measure on disk what was compressed.

`compress` runs one of the `recipes`, `ready_made` imports what somebody else compressed, and `measure` checks a
checkpoint against its recipe.
"""
