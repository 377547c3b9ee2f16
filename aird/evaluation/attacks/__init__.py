"""The attacks: one plug-in each (aird/plugin.py), with its settings, its text, and how it is put on a prompt.

To add one, write a file beside this one that ends with `ATTACK = Attack(...)` (aird/prompts/attack.py). The
configuration, the rules, evaluations and calibrations on attacks take everything else from it.
"""
