"""The check sum of FLAC's and mp3's frames: CRC-16 with the polynomial 0x8005, high bits first."""

from __future__ import annotations


def _entry(index: int) -> int:
    crc = index << 8
    for _ in range(8):
        crc = (crc << 1) ^ (0x8005 if crc & 0x8000 else 0)
    return crc & 0xFFFF


_TABLE = tuple(_entry(index) for index in range(256))


def crc16(data: bytes, start: int = 0) -> int:
    """The check sum of some bytes.

    Args:
        data: The bytes.
        start: What it begins with: 0 in FLAC (RFC 9639, 9.3), all ones in mp3 (ISO 11172-3, 2.4.3.1).
    """
    crc = start
    for byte in data:
        crc = ((crc << 8) & 0xFFFF) ^ _TABLE[(crc >> 8) ^ byte]
    return crc
