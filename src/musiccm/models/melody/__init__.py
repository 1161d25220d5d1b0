"""The networks of MeLoDy (Lam et al. 2023, arXiv 2305.15719)."""
