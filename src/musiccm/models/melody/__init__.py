"""The networks of MeLoDy (arXiv 2305.15719): semantic tokens, the language model that plans, what renders its plan."""
