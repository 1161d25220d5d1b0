"""Decoding and writing audio, fixed windows, resampling, the log-mel front end."""

from musiccm.audio.facts import AudioFacts, scan_audio
from musiccm.audio.io import BadAudio, read_audio, write_audio
from musiccm.audio.mel import LogMel, MelConfig
from musiccm.audio.resample import resample
from musiccm.audio.windows import Conversion, centred_start, fixed_window, random_start

__all__ = [
    "AudioFacts",
    "BadAudio",
    "Conversion",
    "LogMel",
    "MelConfig",
    "centred_start",
    "fixed_window",
    "random_start",
    "read_audio",
    "resample",
    "scan_audio",
    "write_audio",
]
