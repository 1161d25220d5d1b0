"""Listening tests: a blind page for listeners, and what their answers say (docs/listening.md)."""
