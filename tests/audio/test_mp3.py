"""An mp3 is read by its frames: to its true end, and from anywhere as if from the beginning."""

from __future__ import annotations

import hashlib
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile

from musiccm.audio import BadAudio, read_audio, scan_audio
from musiccm.audio.io import read_range
from musiccm.audio.mp3 import mp3_index

ID3 = b"ID3\x03\x00\x00\x00\x00\x00\x0cTIT2\x00\x00\x00\x02\x00\x00\x00x"


def music(seconds, rate_hz, channels=1):
    """Notes that begin and end, with noise now and then: encoders lend bits from one frame to the next."""
    time_S = np.arange(round(seconds * rate_hz)) / rate_hz
    noise_S = np.random.default_rng(0).normal(size=len(time_S)) * (np.sin(9 * time_S) > 0.3)
    tones_S = sum(np.sin(2 * np.pi * hz * time_S) for hz in (220, 331, 523, 1100, 2500)) * np.exp(-3 * (2 * time_S % 1))
    samples_S = 0.12 * tones_S + 0.1 * noise_S
    return samples_S if channels == 1 else np.stack([samples_S, 0.7 * np.roll(samples_S, 99) + 0.02 * noise_S[::-1]], 1)


def encode(path, rate_hz=44100, channels=1, kbps=None, level=0.5, seconds=2.5):
    """Constant at `kbps`, or variable; libsndfile maps the level linearly to its range of bitrates."""
    mode = "VARIABLE"
    if kbps:
        low, high = (32, 320) if rate_hz >= 32000 else (8, 160 if rate_hz >= 16000 else 64)
        mode, level = "CONSTANT", (high - kbps) / (high - low)
    soundfile.write(path, music(seconds, rate_hz, channels), rate_hz, bitrate_mode=mode,
                    compression_level=min(level, 0.999))
    return path


def decoded(path):
    """The whole file by libsndfile in one go, without a jump: right where its count of frames is right."""
    with soundfile.SoundFile(path) as file:
        return file.read(dtype="float32", always_2d=True).mean(1, dtype=np.float32)


ENCODINGS = [
    *[(rate_hz, channels, kbps) for kbps, rate_hz in ((16, 16000), (24, 22050), (24, 24000), (32, 44100), (32, 48000),
                                                     (64, 44100), (128, 44100), (320, 44100), (16, 11025), (8, 8000))
      for channels in (1, 2)],
    *[(rate_hz, channels, None) for rate_hz in (8000, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
      for channels in (1, 2)],
]


@pytest.mark.parametrize(("rate_hz", "channels", "kbps"), ENCODINGS)
def test_a_window_from_inside_has_the_bits_of_the_whole_file(tmp_path, capfd, rate_hz, channels, kbps):
    path = encode(tmp_path / "a.mp3", rate_hz, channels, kbps, level=0.7)
    with soundfile.SoundFile(path) as file:
        assert (f"{kbps} kbps" if kbps else "variable") in file.extra_info
    whole = decoded(path)
    np.testing.assert_array_equal(read_audio(path)[0].numpy(), whole)
    starts = [0, 1, 600, 1151, 1152, 1153, *np.random.default_rng(1).integers(0, len(whole) - 2000, 16).tolist()]
    for start in starts:
        np.testing.assert_array_equal(read_range(path, start, 2000).numpy(), whole[start : start + 2000], str(start))
    np.testing.assert_array_equal(read_range(path, len(whole) - 700, 9999).numpy(), whole[-700:])
    assert capfd.readouterr() == ("", "")


def test_the_windows_of_the_test_above_need_data_from_far_ahead(tmp_path):
    index = mp3_index(encode(tmp_path / "a.mp3", 24000, level=0.7))
    assert max(frame - index.needed_for(frame)[0] for frame in range(len(index.starts_N))) >= 8  # 192 ms


def test_threads_do_not_disturb_each_other(tmp_path):
    paths = [encode(tmp_path / f"{n}.mp3", rate_hz) for n, rate_hz in enumerate((16000, 22050, 44100))]
    wholes = [decoded(path) for path in paths]
    starts = np.random.default_rng(2).integers(0, 40000, 60).tolist()
    with ThreadPoolExecutor(8) as pool:
        windows = list(pool.map(lambda item: read_range(paths[item[0] % 3], item[1], 3000), enumerate(starts)))
    for number, (start, window) in enumerate(zip(starts, windows, strict=True)):
        np.testing.assert_array_equal(window.numpy(), wholes[number % 3][start : start + 3000])


def test_a_scan_in_blocks_hears_the_same_samples(tmp_path, monkeypatch):
    path = encode(tmp_path / "a.mp3", 24000, 1, 24)
    monkeypatch.setattr("musiccm.audio.facts._BLOCK_FRAMES", 5000)
    assert scan_audio(path).digest == hashlib.blake2b(decoded(path).tobytes(), digest_size=16).hexdigest()


def with_count(data, factor):
    """The file with another number of frames in its first one."""
    tag = max(data.find(b"Xing", 0, 60), data.find(b"Info", 0, 60))
    (flags, count) = struct.unpack(">II", data[tag + 4 : tag + 12])
    assert flags & 1 and count > 50
    return data[: tag + 8] + struct.pack(">I", round(count * factor)) + data[tag + 12 :]


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.9, 1.5, 40.0])
def test_a_wrong_frame_count_changes_no_sample(tmp_path, factor, caplog):
    path = encode(tmp_path / "a.mp3", channels=2)
    whole = decoded(path)
    path.write_bytes(with_count(path.read_bytes(), factor))
    np.testing.assert_array_equal(read_audio(path)[0].numpy(), whole)
    np.testing.assert_array_equal(read_range(path, len(whole) - 5000, 5000).numpy(), whole[-5000:])
    if factor <= 1:
        assert scan_audio(path).frames == len(whole) and not caplog.messages
    else:
        with pytest.raises(BadAudio) as caught:
            scan_audio(path)
        assert caught.value.reason == "truncated" and "2.53 s of" in caught.value.detail
        assert "2.53 s of" in caplog.text and "a.mp3" in caplog.text


def test_an_mp3_without_a_frame_count_is_read_to_its_end(tmp_path):
    # The quietest beginning that there is makes every guess from the first frame's size wrong.
    rate_hz, loud = 44100, music(2.0, 44100)
    for name, samples in (("quiet first", np.concatenate([0 * loud[:44100], loud])),
                          ("quiet last", np.concatenate([loud, 0 * loud[:44100]]))):
        path = tmp_path / f"{name}.mp3"
        soundfile.write(path, samples, rate_hz, bitrate_mode="VARIABLE", compression_level=0.3)
        whole, data, index = decoded(path), path.read_bytes(), mp3_index(path)
        path.write_bytes(data[index.starts_N[0] :])
        bare, _ = read_audio(path)
        # what the count's frame says of the encoder's delay and padding went with it
        assert len(bare) == len(index.starts_N) * 1152
        np.testing.assert_array_equal(bare[1105:][: len(whole)].numpy(), whole)
        np.testing.assert_array_equal(read_range(path, 1105 + 80_000, 4000).numpy(), whole[80_000:84_000])
        assert scan_audio(path).frames == len(bare)


def test_fraunhofers_count_is_no_sound(tmp_path):
    path = encode(tmp_path / "a.mp3", 44100, 1, 64)
    data, index = path.read_bytes(), mp3_index(path)
    frames = data[index.starts_N[0] :]
    count = data[index.starts_N[0] :][:4] + bytes(32) + b"VBRI" + struct.pack(
        ">HHHII", 1, 0, 75, len(frames), 2 * len(index.starts_N))
    path.write_bytes(frames)
    whole = read_audio(path)[0].numpy()
    path.write_bytes(count.ljust(int(index.sizes_N[0]), b"\0") + frames)
    np.testing.assert_array_equal(read_audio(path)[0].numpy(), whole)
    with pytest.raises(BadAudio, match=r"2.53 s of 5.07 s"):
        scan_audio(path)


def test_an_mp3_that_was_cut_off_names_both_lengths(tmp_path):
    path = encode(tmp_path / "a.mp3", seconds=6.0)
    data = path.read_bytes()
    path.write_bytes(data[: mp3_index(path).starts_N[115]])
    with pytest.raises(BadAudio) as caught:
        scan_audio(path)
    assert (caught.value.reason, caught.value.detail) == ("truncated", f"{115 * 1152 / 44100:.2f} s of 6.03 s")


def test_frames_without_their_data_are_silent_and_nobody_speaks_of_it(tmp_path, capfd):
    # cut out of another file, as some programs do: the first frames refer to bytes that are not there
    path = encode(tmp_path / "a.mp3", 24000, level=0.7)
    whole, data, index = decoded(path), path.read_bytes(), mp3_index(path)
    first = next(frame for frame in range(40, 90) if index.needed_for(frame + 2)[0] < frame - 3)
    path.write_bytes(data[index.starts_N[first] :])
    part = read_audio(path)[0].numpy()
    assert len(part) == (len(index.starts_N) - first) * 576 and np.abs(part[:576]).max() < 1e-6
    expected = whole[first * 576 - index.trim[0] :]
    part = part[: len(expected)]
    np.testing.assert_allclose(part[20 * 576 :], expected[20 * 576 :], atol=1e-6)
    assert np.abs(part).max() <= np.abs(whole).max()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("between", "whole"), [
    (ID3, True), (ID3 * 2 + bytes(77), True), (b"TAG" + b"x" * 125, True), (bytes(500), True),
    (b"APETAGEX" + struct.pack("<IIII", 2000, 50, 1, 0) + bytes(8) + b"y" * 50, True), (b"music?" * 100, False),
])
def test_what_stands_between_the_frames(tmp_path, between, whole):
    path = encode(tmp_path / "a.mp3", 16000, 1, 32)
    data, place = path.read_bytes(), int(mp3_index(path).starts_N[40])
    n = len(read_audio(path)[0])
    path.write_bytes(data[:place] + between + data[place:])
    assert len(read_audio(path)[0]) == n
    if whole:
        assert scan_audio(path).frames == n
    else:
        with pytest.raises(BadAudio, match=r"unreadable \(600 bytes behind frame 40 are no mp3\)"):
            scan_audio(path)


@pytest.mark.parametrize("other", [(22050, 1), (44100, 2)])
def test_a_stream_that_changes_is_not_read_to_the_change_alone(tmp_path, other):
    data = [encode(tmp_path / "x.mp3", rate_hz, channels, 64).read_bytes() for rate_hz, channels in ((44100, 1), other)]
    (tmp_path / "both.mp3").write_bytes(data[0] + data[1])
    with pytest.raises(BadAudio, match="changes"):
        scan_audio(tmp_path / "both.mp3")


def test_what_stands_behind_the_frames_is_no_sound(tmp_path):
    path = encode(tmp_path / "a.mp3")
    data, n = path.read_bytes(), len(read_audio(path)[0])
    noise = np.random.default_rng(3).bytes(200_000)
    for behind in (b"TAG" + b"x" * 125, b"LYRICSBEGIN" + b"la " * 300, noise, bytes(9)):
        path.write_bytes(data + behind)
        os.utime(path)
        assert scan_audio(path).frames == n


def test_an_mp3_within_a_wav_is_read_in_the_same_way(tmp_path):
    path = encode(tmp_path / "a.mp3", 24000, 1, 24)
    data, whole = path.read_bytes(), read_audio(path)[0].numpy()
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 24000, 3000, 1, 0, 12, 1, 2, 72, 1, 1393)  # MPEGLAYER3WAVEFORMAT
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"fact" + struct.pack("<II", 4, len(whole))
    head += b"data" + struct.pack("<I", len(data))
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(head) + len(data)) + head + data)
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav")[0].numpy(), whole)
    np.testing.assert_array_equal(read_range(tmp_path / "a.wav", 30_000, 999).numpy(), whole[30_000:30_999])
    assert scan_audio(tmp_path / "a.wav") == scan_audio(path)


def protected(data, index, bitrate_index):
    """The same MPEG-2 mono stream with check sums: data moved into larger frames, as far back as a frame may refer."""
    def crc(content):  # bit by bit, ISO 11172-3, 2.4.3.1
        register = 0xFFFF
        for bit in "".join(f"{byte:08b}" for byte in content):
            carry = (register >> 15) ^ int(bit)
            register = (register << 1 & 0xFFFF) ^ (0x8005 if carry else 0)
        return struct.pack(">H", register)

    places = list(zip(index.starts_N.tolist(), index.sizes_N.tolist(), strict=True))
    bodies = b"".join(data[start + 13 : start + size] for start, size in places)
    frames, packed, old, area = [], bytearray(), 0, 0
    for start, size in places:
        side = data[start + 4 : start + 13]
        content = bodies[old - side[0] :][: -(-(int.from_bytes(side[1:4], "big") >> 11 & 0xFFF) // 8)]
        old += size - 13
        header = bytes([0xFF, data[start + 1] & 0xFE, bitrate_index << 4 | data[start + 2] & 0x0C, data[start + 3]])
        room = 72 * (0, 8, 16, 24, 32, 40, 48, 56, 64)[bitrate_index] * 1000 // index.format.sample_rate_hz - 15
        packed = packed.ljust(area - 255, b"\0")
        begin = area - len(packed) if len(packed) < area else 0
        packed = packed.ljust(area - begin, b"\0")
        packed += content
        assert len(packed) <= area + room
        side = bytes([begin]) + side[1:]
        frames.append((header, crc(header[2:] + side), side, room))
        area += room
    stream, place = b"", 0
    for header, check, side, room in frames:
        stream += header + check + side + bytes(packed[place : place + room]).ljust(room, b"\0")
        place += room
    return stream


def test_frames_with_check_sums_are_decoded_alike(tmp_path, capfd):
    path = encode(tmp_path / "a.mp3", 24000, 1, 24)
    whole, data, index = read_audio(path)[0].numpy(), path.read_bytes(), mp3_index(path)
    path.write_bytes(protected(data, index, 4))
    again = mp3_index(path)
    assert again.sound_N.all() and max(frame - again.needed_for(frame)[0] for frame in range(90)) >= 5
    np.testing.assert_array_equal(read_audio(path)[0].numpy(), whole)
    for start in range(3, 50_000, 1777):
        np.testing.assert_array_equal(read_range(path, start, 2000).numpy(), whole[start : start + 2000])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [100, 4, 5000])
def test_what_only_begins_as_an_mp3_is_refused_without_the_decoders_own_words(tmp_path, capfd, size):
    path = tmp_path / "x.mp3"
    path.write_bytes(b"\xff\xfb\x90\x04" + np.random.default_rng(0).bytes(size - 4))
    with pytest.raises(BadAudio, match=r"x\.mp3: unreadable .*no whole frames"):
        read_audio(path)
    assert capfd.readouterr() == ("", "")
