"""Latents of a corpus on disk: written once in whole files, read by memory map."""
