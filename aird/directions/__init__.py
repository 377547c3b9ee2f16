"""The direction of a refusal: activations, candidates and their scores, the choice, and what checks and compares it."""
