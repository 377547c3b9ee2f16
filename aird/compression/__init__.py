"""Compress chat checkpoints, and measure on disk what was compressed.

`settings` says what a configuration may ask for and imports no torch; `registry`
joins each recipe with the function that does it; `matrices` reads single weight
matrices of any checkpoint; `measure` checks a checkpoint against its recipe.
"""
