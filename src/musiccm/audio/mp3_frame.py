"""The header of an mp3's frames: MPEG-1, 2 and 2.5, layer III (ISO 11172-3, 13818-3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from musiccm.audio.crc import crc16

# Bitrates in kb/s and rates in Hz of layer III, by the header's index.
_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = (44100, 48000, 32000)
# Bits of the second and third byte of a header that stay the same throughout: version and layer; the rate.
_SAME = 0xFE0C


@lru_cache(maxsize=16)
def frame_lengths(kind: int | None = None) -> list[int]:
    """Bytes of a frame by the second and third byte of its header; 0 where they are no header of layer III.

    Args:
        kind: Take only headers of this `kind_of`.
    """
    if kind is not None:
        return [length if word & _SAME == kind else 0 for word, length in enumerate(frame_lengths())]
    lengths = [0] * 65536
    for word in range(0xE000, 0x10000):
        version, layer, bitrate, rate = (word >> 11) & 3, (word >> 9) & 3, (word >> 4) & 15, (word >> 2) & 3
        if version == 1 or layer != 1 or bitrate in (0, 15) or rate == 3:
            continue
        rate_hz = _RATES_HZ[rate] // {3: 1, 2: 2, 0: 4}[version]
        samples, kbps = (144_000, _KBPS_1) if version == 3 else (72_000, _KBPS_2)
        lengths[word] = samples * kbps[bitrate] // rate_hz + ((word >> 1) & 1)
    return lengths


def frame_length(data: bytes, place: int, kind: int | None = None) -> int:
    """Bytes of the layer III frame whose header lies at `place`; 0 where there is none (of the kind, if given)."""
    if not 0 <= place <= len(data) - 4 or data[place] != 0xFF:
        return 0
    return frame_lengths(kind)[data[place + 1] << 8 | data[place + 2]]


def kind_of(data: bytes, place: int) -> int:
    """Version and sampling rate of the frame at `place`, as a number that is the same for all frames of a stream."""
    return (data[place + 1] << 8 | data[place + 2]) & _SAME


@dataclass(frozen=True)
class Mp3Format:
    """What all frames of a stream have in common.

    Args:
        header: The first frame's four header bytes.
    """

    header: bytes

    @property
    def first_version(self) -> bool:
        """MPEG-1, rather than MPEG-2 or 2.5 with half as many samples a frame."""
        return (self.header[1] >> 3) & 3 == 3

    @property
    def channels(self) -> int:
        """1 or 2."""
        return 1 if self.header[3] >> 6 == 3 else 2

    @property
    def sample_rate_hz(self) -> int:
        """Sampling rate."""
        return _RATES_HZ[(self.header[2] >> 2) & 3] // {3: 1, 2: 2, 0: 4}[(self.header[1] >> 3) & 3]

    @property
    def samples_a_frame(self) -> int:
        """Samples a channel of every frame."""
        return 1152 if self.first_version else 576

    @property
    def side_bytes(self) -> int:
        """Bytes of side information behind the header and its check sum."""
        return (17 if self.channels == 1 else 32) if self.first_version else (9 if self.channels == 1 else 17)

    @property
    def largest_reservoir(self) -> int:
        """How many bytes back a frame's data may begin."""
        return 511 if self.first_version else 255

    def empty_frame(self, content: bytes = b"") -> bytes:
        """A silent frame of 64 kb/s without a check sum, with `content` behind its side information."""
        bitrate = (_KBPS_1 if self.first_version else _KBPS_2).index(64)
        header = bytes([0xFF, self.header[1] | 1, bitrate << 4 | self.header[2] & 0x0C, self.header[3]])
        return (header + bytes(self.side_bytes) + content).ljust(frame_length(header, 0), b"\0")

    def count_frame(self, frames: int) -> bytes:
        """A first frame, not sound itself, that states how many follow."""
        return self.empty_frame(b"Info" + struct.pack(">II", 1, frames))

    def silenced(self, frame: bytes, reservoir: int) -> bytes:
        """A frame without sound, whose data stays there for later frames.

        Args:
            frame: The frame.
            reservoir: Bytes of data that lie before it, and are to be kept.

        Returns:
            A frame of the same length.
        """
        checked = not frame[1] & 1
        side = 6 if checked else 4
        back = min(reservoir, self.largest_reservoir)
        begin = struct.pack(">H", back << 7) if self.first_version else bytes([back, 0])
        information = begin.ljust(self.side_bytes, b"\0")
        check = struct.pack(">H", crc16(frame[2:4] + information, 0xFFFF)) if checked else b""
        return frame[:4] + check + information + frame[side + self.side_bytes :]
