"""Refusal directions of compressed chat models, and AIRD, their repair.

The library is plain functions on tensors and files; it never sees Snakemake.
Read it in the order of the data's way: sources, prompts, models, tuning,
compression, activations, direction_scores, selection, comparison, edits,
adapters, serving, evaluation, judges, tables, figures.
"""
