"""Clips that clients bring: bounded, checked, and kept under names of the engine's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

from musiccm.audio.containers import missing_end
from musiccm.audio.content import content_of
from musiccm.audio.facts import scan_audio
from musiccm.audio.io import BadAudio, open_audio
from musiccm.errors import MusiccmError
from musiccm.serving.errors import TooLarge, UnsupportedAudio
from musiccm.serving.limits import Limits

_FORMATS = "expected wav, flac, ogg or mp3"


def check_upload(path: Path, limits: Limits) -> float:
    """Refuse what is no clip that can be edited, by its header, before it is decoded.

    Args:
        path: The file.
        limits: Bounds.

    Returns:
        Its seconds.

    Raises:
        UnsupportedAudio: It is of no format that libsndfile reads; other decoders are not let near uploads.
        TooLarge: It lasts too long, or has too many channels.
        MusiccmError: It is damaged, empty or silent.
    """
    try:
        with path.open("rb") as file:
            content = content_of(file)
        if content.demuxer is not None or content.foreign is not None:
            raise UnsupportedAudio(f"the upload is {content.foreign}; {_FORMATS}")
        with open_audio(path) as sound:
            frames, rate_hz, channels = sound.frames, sound.samplerate, sound.channels
            if channels > limits.max_upload_channels:
                raise TooLarge(f"the upload has {channels} channels; expected at most {limits.max_upload_channels}")
            most = min(int(limits.max_upload_s * rate_hz), limits.max_upload_samples // channels)
            if frames > most:
                raise TooLarge(_too_many(limits, rate_hz, channels))
            # the header may say less than there is
            read = 0
            while count := len(sound.read(rate_hz * 10, dtype="float32", always_2d=True)):
                read += count
                if read > most:
                    raise TooLarge(_too_many(limits, rate_hz, channels))
        if read:
            scan_audio(path)  # which refuses what is silent or not finite
        if content.suffix != ".flac" and (cut := missing_end(path)):  # a flac is whole if it can be decoded
            raise BadAudio(path, "truncated", cut)
    except BadAudio as error:
        if error.reason in ("unreadable", "missing"):
            raise UnsupportedAudio(f"the upload cannot be read ({error.detail}); {_FORMATS}") from error
        raise MusiccmError(f"the upload is {error.reason.replace('_', ' ')}"
                           f"{f' ({error.detail})' if error.detail else ''}; send another") from error
    except (OSError, RuntimeError) as error:
        raise UnsupportedAudio(f"the upload cannot be decoded; {_FORMATS}") from error
    if not read:
        raise MusiccmError("the upload is empty; send a clip")
    return read / rate_hz


def _too_many(limits: Limits, rate_hz: int, channels: int) -> str:
    longest_s = min(limits.max_upload_s, limits.max_upload_samples / channels / rate_hz)
    return (f"the upload lasts too long; expected at most {longest_s:.0f} s of {channels} channel"
            f"{'s' if channels > 1 else ''} at {rate_hz} Hz: cut it, or bring it at a lower rate")


def secret_hash(secret: str) -> str:
    """What stands for a key where jobs say whose they are; the key itself is kept nowhere."""
    return hashlib.sha256(b"musiccm owner\0" + secret.encode()).hexdigest()[:32]
