"""Corpora, the latent cache, and the LightningDataModule that serves both."""
