"""Programs of llama.cpp's environment, started by their path: they import nothing of this project."""
