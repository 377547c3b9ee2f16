"""Engines: what runs a checkpoint and answers prompts. One file each, and one entry in `registry`."""
