"""Programs that are started by their path, also in other environments, and import nothing of this project.

They stand apart from modules such as `engines/transformers.py`, as Python looks for imports beside a program first.
"""
