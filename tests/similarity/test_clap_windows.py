"""CLAP's windows: all of a clip, the same every time, levelled, and silent ones similar to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musiccm.audio import fixed_window, resample, scan_audio, write_audio
from musiccm.errors import MusiccmError
from musiccm.similarity.clap_windows import ClapWindows, FileWindows, middle, window_starts


@pytest.mark.parametrize(("samples", "expected"), [
    (5, [0]), (10, [0]), (11, [0, 1]), (14, [0, 4]), (18, [0, 4, 8]), (20, [0, 4, 8, 10]),
])
def test_windows_cover_the_clip(samples: int, expected: list[int]) -> None:
    assert window_starts(samples, 10, 4) == expected
    assert middle(5, 2) == slice(1, 3) and middle(4, 9) == slice(0, 4)


def ear(heard: list, window: int = 800, hop: int = 400, **options) -> ClapWindows:
    def clap(waveform_BS: torch.Tensor, rate: int) -> torch.Tensor:
        heard.append((waveform_BS.clone(), rate))
        return torch.stack([waveform_BS.mean(dim=1), waveform_BS.square().mean(dim=1).sqrt()], dim=1)

    return ClapWindows(clap, "f", 8000, window, hop, **options)


def test_hears_windows_of_levelled_files_in_order(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    waveform = {16000: 0.1 * torch.randn(5000, generator=generator), 8000: 0.2 * torch.randn(500, generator=generator)}
    files = []
    for rate, samples in waveform.items():
        write_audio(tmp_path / f"{rate}.wav", samples + 0.05, rate)
        facts = scan_audio(tmp_path / f"{rate}.wav")
        files.append(FileWindows(str(tmp_path / f"{rate}.wav"), facts, ear([]).starts(facts)))
    assert [file.starts for file in files] == [[0, 400, 800, 1200, 1600, 1700], [0]]
    heard: list = []
    counted: list[int] = []
    rows = ear(heard, batch_size=4).embed(files, counted.append)
    assert counted == [4, 3] and {rate for _, rate in heard} == {8000}
    assert [len(batch) for batch, _ in heard] == [4, 1, 2]
    long = resample(fixed_window(waveform[16000], 5000, 0), 16000, 8000)
    for row, start in zip(rows, files[0].starts, strict=False):
        assert float(row[1]) == pytest.approx(float(long[start : start + 800].square().mean().sqrt()), rel=2e-2)
    # A clip shorter than the window comes as it is: CLAP repeats it by its own rule.
    assert heard[1][0].shape == (1, 500) and float(heard[1][0].abs().max()) == pytest.approx(0.5, abs=1e-3)
    assert torch.equal(rows, ear([], batch_size=7, workers=1).embed(files))


def test_a_silent_window_has_the_zero_row(tmp_path: Path) -> None:
    waveform = torch.cat([torch.zeros(800), 0.3 * torch.sin(torch.arange(1600) / 3)])
    waveform -= waveform.mean()
    write_audio(tmp_path / "rest.wav", waveform, 8000)
    facts = scan_audio(tmp_path / "rest.wav")
    rows = ear([]).embed([FileWindows(str(tmp_path / "rest.wav"), facts, [0, 400, 800])])
    assert rows[0].abs().max() == 0 and rows[1:].abs().amin(dim=0)[1] > 0


def test_windows_need_a_length() -> None:
    with pytest.raises(MusiccmError, match="positive window"):
        ear([], hop=0)
