"""Chat models: their checkpoints of every format, loaded, read, written, taken apart and tuned."""
