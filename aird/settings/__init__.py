"""The configuration: typed models, one file per stage, the checks of what is written, and the generated reference.

The workflow validates a configuration while it is parsed, on every start and in
every cluster job, so nothing here may import torch or pandas.
"""
