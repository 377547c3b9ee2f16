"""The settings of the stages as typed models, and what all of them share. `aird.configuration` puts them together.

The workflow validates a configuration while it is parsed, on every start and in
every cluster job, so nothing here may import torch or pandas.
"""
