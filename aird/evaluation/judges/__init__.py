"""The judges: did a completion comply? One plug-in each (aird/plugin.py).

To add one, write a file beside this one that ends with `JUDGE = TextJudge(...)` or `JUDGE = ServedJudge(...)`
(aird/evaluation/judge.py). The configuration, the rules and the tables take everything else from it.
"""
