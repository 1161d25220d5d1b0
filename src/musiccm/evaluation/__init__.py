"""Evaluation without Lightning: which models are compared, on which clips, by which metrics, and the tables of that."""
