"""Settings as typed models, one file per stage; only pydantic and the standard library.

The workflow validates a configuration while it is parsed, on every start and in
every cluster job, so nothing here may import torch or pandas.
"""
