"""Put refusal back: rank-1 edits by formula, fit or calibration, the baselines, and what a patch leaves behind."""
