"""Encoding a corpus into its latent cache, in one process or several."""
