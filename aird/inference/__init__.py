"""Run a model on many prompts: packed without padding, resumed at a block, changed by hooks, or generating replies."""
