"""Claims C1 to C4 of the paper (arXiv 2504.04215), and C5 about its repair, each on paired prompts, with a verdict.

    statement.py    what is said of which checkpoint, on which test, with which verdict; the rows of claims.csv
    measures.py     what was measured for a statement: the rule that decides it, and the sample that would
    evidence.py     the records that the claims rest on
    mediation.py    C1: one direction mediates refusal
    movement.py     C2: quantisation keeps the direction, pruning moves it
    loss.py         C3: refusal is lost where the direction moves
    repair.py       C4: the repair brings back what compression took, and keeps utility
    restoration.py  C5: the repair restores the refusal direction

`aird/reporting/verdicts.py` has the decision rules. An estimate counts in the claimed way as positive, a cost
(over-refusal, utility, perplexity) as positive where it is one. P-values are adjusted by Holm over
the compressions of a model, apart for each statement (and suite and patch). Rows with compression
`all` judge the claim over a model's compressions: it holds if it holds on each of them.
"""
