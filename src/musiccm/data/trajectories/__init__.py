"""Trajectories of a guided teacher on disk: written once in whole files, read by memory map."""
