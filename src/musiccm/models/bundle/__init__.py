"""A model as a folder: its parts, their files, its card and how its student is sampled."""

from musiccm.models.bundle.bundle import Bundle, save_settings

__all__ = ["Bundle", "save_settings"]
