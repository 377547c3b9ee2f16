"""Time and memory of what this project computes, measured side by side: `make bench`."""
