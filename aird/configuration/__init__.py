"""The whole configuration: the settings of all stages as one typed model, its checks and messages, and its reference.

It stands above the stages, because a patch method says what its settings are beside how the patch is made. The
workflow validates a configuration while it is parsed, on every start and in every cluster job, so what is imported
here may import torch or pandas inside functions only.
"""
