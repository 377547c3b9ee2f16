"""The formats of quantised checkpoints that are read: one plug-in each (aird/plugin.py).

To add one, write a file beside this one, called like the `quant_method` of config.json (- becomes _), that ends with
`FORMAT = Format(...)` (aird/models/format.py). What is refused by name stands in aird/models/refusals.py.
"""
