"""Refusal directions of compressed chat models, and AIRD, their repair.

The library is plain functions on tensors and files; it never sees Snakemake. Its folders are the stages
of the data's way, and each imports only those that stand before it here: `support`, `settings`, `prompts`,
`inference`, `models`, `compression`, `directions`, `patching`, `evaluation`, `configuration`,
`reporting`, `commands`.
"""

__version__ = "0.1.0"
