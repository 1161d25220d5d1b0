"""Few-step text-to-music models: distill a diffusion teacher, measure what was lost, hand the result to people."""

__version__ = "0.1.0"
