"""The recipes: one plug-in each (aird/plugin.py), with its settings, what it writes, and its words.

To add one, write a file beside this one that ends with `RECIPE = Recipe(...)` (aird/compression/recipe.py). The
configuration, its checks, the rules and the report take everything else from it.
"""
