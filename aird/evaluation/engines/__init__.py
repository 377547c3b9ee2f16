"""Engines: what runs a checkpoint and answers prompts. One file each (aird/plugin.py)."""
