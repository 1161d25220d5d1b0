"""Pictures of mels: seconds and kilohertz where they belong."""

from __future__ import annotations

import math

import pytest
import torch

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.evaluation.plots import mel_figure, mel_image

CONFIG = MelConfig()


def tone(hz: float, seconds: float) -> torch.Tensor:
    t = torch.arange(round(seconds * CONFIG.sample_rate_hz)) / CONFIG.sample_rate_hz
    return 0.5 * torch.sin(2 * math.pi * hz * t)


@pytest.mark.parametrize("hz", [500.0, 2000.0])
def test_a_tone_stands_beside_its_frequency_and_ends_at_its_second(hz: float) -> None:
    mel_MN = LogMel(CONFIG)(tone(hz, 2.56)[None])[0]
    axes, _ = mel_figure([("a tone", mel_MN)], CONFIG).axes
    ticks = dict(zip((text.get_text() for text in axes.get_yticklabels()), axes.get_yticks(), strict=True))
    assert ticks[f"{hz / 1000:g}"] == pytest.approx(int(mel_MN.mean(dim=0).argmax()), abs=1.0)
    assert axes.get_images()[0].get_extent()[:2] == [0.0, pytest.approx(2.56)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("seconds", "kHz")


def test_prompts_stand_whole_and_alike_beginnings_lose_none() -> None:
    start = "a calm piano melody over soft strings with "
    labels = [start + "drums", start + "a long tail of words that no card could hold on one line"]
    figure = mel_figure([(label, torch.zeros(256, 64)) for label in labels], CONFIG, "student@1", stacked=True)
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes[:2]] == labels
    pixels = mel_image([(label, torch.zeros(256, 64)) for label in labels], CONFIG)
    assert pixels.shape[0] > 400 and pixels.shape[1] > 500 and pixels.dtype.name == "uint8"
