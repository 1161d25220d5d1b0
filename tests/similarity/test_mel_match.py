"""Sliding log-mel correlation: against NumPy's corrcoef at every offset, and on planted copies beside other music."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from musiccm.audio import BadAudio, LogMel, write_audio
from musiccm.errors import MusiccmError
from musiccm.similarity import mel_match
from musiccm.similarity.mel_match import MelMatcher, sliding_correlation

RATE = 16000


def tune(seed: int, seconds: float, tempo_s: float = 0.25) -> torch.Tensor:
    """Plucked notes of random pitch at one tempo: music that has its kind in common, and its notes not."""
    generator = torch.Generator().manual_seed(seed)
    length = round(seconds * RATE)
    waveform, time = torch.zeros(length + RATE), torch.arange(RATE) / RATE
    scale = 220 * 2 ** (torch.tensor([0, 2, 4, 7, 9, 12, 14, 16]) / 12)
    for start in range(0, length, round(tempo_s * RATE)):
        pitch = scale[int(torch.randint(8, (), generator=generator))]
        note = sum(torch.sin(2 * torch.pi * pitch * n * time) / n for n in (1, 2, 3)) * torch.exp(-6 * time)
        waveform[start : start + RATE] += note
    return 0.3 * waveform[:length]


def test_equals_corrcoef_at_every_offset() -> None:
    generator = torch.Generator().manual_seed(0)
    query, target = torch.randn(13, 5, generator=generator), 40 + 3 * torch.randn(50, 5, generator=generator)
    found = sliding_correlation(query, target)
    assert found.shape == (38,)
    q = query.double().numpy() - query.double().numpy().mean(axis=0)
    for offset in range(38):
        piece = target[offset : offset + 13].double().numpy()
        expected = np.corrcoef(q.ravel(), (piece - piece.mean(axis=0)).ravel())[0, 1]
        assert float(found[offset]) == pytest.approx(expected, abs=1e-9)
    # Each bin's own level and the scale of all do not count.
    again = sliding_correlation(query * 3 + torch.arange(5), target)
    torch.testing.assert_close(again, found)


def test_what_does_not_change_fits_nowhere() -> None:
    generator = torch.Generator().manual_seed(0)
    moving, held = torch.randn(20, 4, generator=generator), torch.ones(9, 4)
    assert sliding_correlation(held, moving).abs().max() == 0
    assert sliding_correlation(moving[:9], torch.ones(20, 4)).abs().max() == 0
    with pytest.raises(MusiccmError, match="no longer than"):
        sliding_correlation(moving, held)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("songs")
    for seed in range(5):
        write_audio(folder / f"{seed}.wav", tune(seed, 20.0), RATE)
    return folder


@pytest.mark.parametrize("piece_s", [60.0, 4.0])
def test_a_planted_copy_is_found_where_it_lies(songs: Path, tmp_path: Path, monkeypatch, piece_s: float) -> None:
    monkeypatch.setattr(mel_match, "PIECE_S", piece_s)
    matcher = MelMatcher(LogMel(), segment_s=3.0)
    start = 123_457  # 7.716 s: on no frame
    noise = torch.randn(6 * RATE, generator=torch.Generator().manual_seed(9))
    copied = tune(0, 20.0)[start : start + 6 * RATE]
    planted = 0.2 * (copied + 0.03 * copied.std() * noise) + 0.01
    write_audio(tmp_path / "copy.flac", planted, RATE)
    found = matcher.find(tmp_path / "copy.flac", 0.0, None, songs / "0.wav")
    assert found.correlation > 0.9
    assert found.target_s - found.query_s == pytest.approx(start / RATE, abs=0.011)
    others = [matcher.find(tmp_path / "copy.flac", 0.0, None, songs / f"{n}.wav").correlation for n in range(1, 5)]
    assert max(others) < 0.6


def test_a_copied_part_of_a_clip_and_a_short_training_clip(songs: Path, tmp_path: Path) -> None:
    matcher = MelMatcher(LogMel(), segment_s=3.0)
    mixed = torch.cat([tune(7, 5.0), tune(0, 20.0)[8 * RATE : 12 * RATE]])
    write_audio(tmp_path / "mixed.wav", mixed, RATE)
    found = matcher.find(tmp_path / "mixed.wav", 0.0, None, songs / "0.wav")
    assert found.correlation > 0.9 and found.target_s - found.query_s == pytest.approx(3.0, abs=0.011)
    write_audio(tmp_path / "short.wav", mixed[6 * RATE : 8 * RATE], RATE)
    found = matcher.find(tmp_path / "mixed.wav", 5.0, 4.0, tmp_path / "short.wav")
    assert found.correlation > 0.9 and found.target_s == 0.0
    assert found.query_s == pytest.approx(6.0, abs=0.011) and found.segment_s == pytest.approx(2.0)


def test_missing_training_audio_says_so(songs: Path, tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="gone.wav: missing"):
        MelMatcher(LogMel()).find(songs / "0.wav", 0.0, 3.0, tmp_path / "gone.wav")
