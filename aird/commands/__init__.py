"""The command `aird`: one step of the method on models of one's own, without the workflow.

One file per command. A command reads its arguments, calls the functions that the workflow's
scripts call, and writes the same artifacts.
"""
