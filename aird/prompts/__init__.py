"""Prompts: fetched from pinned sources, made into sets that do not overlap, put into a model's own chat template."""
