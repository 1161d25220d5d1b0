"""How much one request may ask for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of requests; what is beyond is refused before anything is computed.

    Args:
        max_seconds: Length of a whole piece.
        max_stream_s: Length of a stream; one without a length ends there too.
        max_steps: Sampling steps.
        max_prompt_chars: Characters of one text.
        max_prompts: Texts along time.
        max_upload_bytes: Bytes of an uploaded clip.
        max_upload_s: Seconds of an uploaded clip.
        max_upload_channels: Channels of an uploaded clip.
        max_upload_samples: Samples of an uploaded clip in all channels: few bytes may stand for very many. Ten minutes
            at 48 kHz in stereo are 58 million.
        max_uploading: Clips that are on their way at once, or being read.
        max_uploads: Uploaded clips that are kept at once.
        max_uploads_a_key: The same, of one key.
        upload_life_s: How long an upload is kept, if no room is needed; jobs that have not ended keep theirs.
    """

    max_seconds: float = 600.0
    max_stream_s: float = 4 * 3600.0
    max_steps: int = 200
    max_prompt_chars: int = 1000
    max_prompts: int = 64
    max_upload_bytes: int = 64 * 2**20
    max_upload_s: float = 600.0
    max_upload_channels: int = 8
    max_upload_samples: int = 64_000_000
    max_uploading: int = 16
    max_uploads: int = 64
    max_uploads_a_key: int = 32
    upload_life_s: float = 3600.0

    @property
    def max_at_s(self) -> float:
        """Latest start of a text in a piece, or in a clip that is edited."""
        return max(self.max_seconds, self.max_upload_s)
