"""Prompts and audio to what the denoiser is conditioned on."""
