"""What happens on a clock: evaluation, panels, tables, plots, provenance."""
