"""What a file is by its first bytes, whatever its name, behind the tags that players put in front of any format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from musiccm.audio.mp3_frame import frame_length

# Bytes that are looked at behind the tags.
HEAD_BYTES = 512

_CONVERT = "convert it to wav, flac, ogg or mp3"
_AGAIN = "get the file again; what came is no audio"
# ffmpeg's names of the containers that are decoded by it (`ffmpeg_formats`).
_MP4, _MATROSKA, _ADTS = "mov", "matroska", "aac"
# Where in the file, which bytes, what it is, and what to do. Nothing that libsndfile decodes stands here.
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "Windows Media (wma, asf)", _CONVERT),
    (0, b"ADIF", "AAC", _CONVERT),
    (0, b"MAC ", "Monkey's Audio (ape)", _CONVERT),
    (0, b"wvpk", "WavPack (wv)", _CONVERT),
    (0, b"MPCK", "Musepack (mpc)", _CONVERT),
    (0, b"MP+", "Musepack (mpc)", _CONVERT),
    (0, b"TTA1", "True Audio (tta)", _CONVERT),
    (0, b"DSD ", "DSD audio (dsf)", _CONVERT),
    (0, b"FRM8", "DSD audio (dff)", _CONVERT),
    (0, b".RMF", "RealMedia (ra, rm)", _CONVERT),
    (0, b".ra\xfd", "RealAudio (ra)", _CONVERT),
    (0, b"#!AMR", "AMR speech", _CONVERT),
    (0, b"FLV\x01", "Flash video (flv)", _CONVERT),
    (0, b"\x0b\x77", "AC-3 audio (ac3)", _CONVERT),
    (8, b"AVI ", "AVI video", _CONVERT),
    (8, b"WEBP", "a WebP image", _AGAIN),
    (0, b"MThd", "MIDI notes, which hold no sound", "render them to wav, flac, ogg or mp3"),
    (0, b"version https://git-lfs.github.com/spec/", "a git-LFS pointer in place of the file",
     "fetch the file itself with `git lfs pull`"),
    (0, b"/annex/objects/", "a git-annex pointer in place of the file", "fetch the file itself with `git annex get`"),
    (0, b"#EXTM3U", "a playlist (m3u)", "name the files that it lists"),
    (0, b"[playlist]", "a playlist (pls)", "name the files that it lists"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"PK\x05\x06", "an empty zip archive", _AGAIN),
    (0, b"BZh", "a bzip2 archive", "unpack it"),
    (0, b"\xfd7zXZ\x00", "an xz archive", "unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", "unpack it"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (0, b"Rar!\x1a\x07", "a rar archive", "unpack it"),
    (257, b"ustar", "a tar archive", "unpack it"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image", _AGAIN),
    (0, b"\xff\xd8\xff", "a JPEG image", _AGAIN),
    (0, b"GIF8", "a GIF image", _AGAIN),
    (0, b"%PDF-", "a PDF document", _AGAIN),
)


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Args:
        offset: Where it begins, behind tags.
        suffix: `.wav`, `.flac`, `.ogg` or `.mp3` where it is one of these.
        foreign: What it is, if it is known to be something that cannot be decoded.
        advice: What to do about that.
        demuxer: ffmpeg's name of the container, where what is foreign to libsndfile may be decoded by ffmpeg's
            libraries.
        frame: Whether it begins with the header of an mp3's frame.
    """

    offset: int = 0
    suffix: str | None = None
    foreign: str | None = None
    advice: str | None = None
    demuxer: str | None = None
    frame: bool = False


def skip_tags(read: Callable[[int, int], bytes], place: int = 0) -> int:
    """Where the content begins, behind any number of ID3v2, ID3v1 and APE tags.

    Args:
        read: Gives the bytes at a place, as many as there are up to a number.
        place: Where to look.

    Returns:
        A place; `place` itself where no tag is.
    """
    while True:
        head = read(place, 32)
        if head[:3] == b"ID3" and len(head) >= 10 and max(head[3:5]) < 0xFF and max(head[6:10]) < 0x80:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            place += 10 + size + (10 if head[5] & 0x10 else 0)  # the flag of a footer (ID3v2.4, 3.1)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            place += 32 + int.from_bytes(head[12:16], "little")
        elif head[:3] == b"TAG" and len(read(place, 129)) == 129:
            place += 128
        else:
            return place
        while padding := len(block := read(place, 4096)) - len(block.lstrip(b"\0")):  # some programs leave zeros
            place += padding


def content_of(file: BinaryIO) -> Content:
    """What an open file holds, by its first bytes; its position is moved.

    Args:
        file: A file that can seek.

    Returns:
        What is known of it; nothing for formats that are not in the table.
    """
    def read(place: int, size: int) -> bytes:
        file.seek(place)
        return file.read(size)

    place = skip_tags(read)
    head = read(place, HEAD_BYTES)
    if suffix := _suffix(head):
        return Content(place, suffix, frame=suffix == ".mp3")
    for offset, magic, name, advice in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            return Content(place, None, name, advice)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return Content(place, None, "Matroska or WebM (mka, webm)", _CONVERT, _MATROSKA)
    if head[4:8] in (b"ftyp", b"moov", b"mdat"):
        return Content(place, None, "MPEG-4 (m4a, mp4)", _CONVERT, _MP4)
    if len(head) > 6 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0 and (head[2] >> 2) & 15 < 13:
        return Content(place, None, "AAC (adts)", _CONVERT, _ADTS)
    if head and not head.strip(b"\0") and _only_zeros(file):
        return Content(place, None, "zeros from beginning to end", "get the file again; its content was never written")
    if text := _text(head):
        return Content(place, None, text, _AGAIN)
    # Some players' tags are longer than they state: what stands behind ID3 and is nothing else is looked for as an mp3.
    return Content(place, ".mp3" if read(0, 3) == b"ID3" else None)


def _suffix(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RF64", b"RIFX") and head[8:12] == b"WAVE":
        return ".wav"
    if head[:4] == b"fLaC":
        return ".flac"
    if head[:4] == b"OggS":
        return ".ogg"
    return ".mp3" if frame_length(head, 0) else None


def _only_zeros(file: BinaryIO) -> bool:
    file.seek(0)
    return all(not block.strip(b"\0") for block in iter(lambda: file.read(1 << 20), b""))


def _text(head: bytes) -> str | None:
    """What a text is; None where the bytes are no text, or the header of an audio format that is written in letters."""
    if head.startswith((b"NIST_1A", b"PVF1")):
        return None
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML)"
    if start.startswith(b"<?xml") or start.startswith(b"<error"):
        return "an XML text"
    if start.startswith((b'{"', b"{ ", b"{\n", b"{\r", b"[{", b'["')):
        return "a JSON text"
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head) and len(head.split()) > 1:
        return f"a text ({head[:40].decode('ascii').split(chr(10))[0].strip()!r})"
    return None
