"""Judges: did a completion comply? One file each, and one entry in `registry`."""
