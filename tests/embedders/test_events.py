"""Reading events from sound: onsets of clicks, the tempo of a metronome, windows by place, what labels ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.data.demo.events.world import borders_s
from musiccm.embedders.events import EventsEmbedder, onset_times, tempo_of
from musiccm.errors import MusiccmError
from musiccm.evaluation.feature_extraction import FeatureExtractor
from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.models.sections import section_window, sounding, told_sections, told_values
from musiccm.models.tagger import Tagger

RATE_HZ = 16000
TAGS = ["drums:none", "drums:rock", "instrument:flute", "instrument:piano"]


def clicks(times_s: list[float]) -> np.ndarray:
    wave = 1e-4 * np.random.default_rng(0).standard_normal(81920).astype(np.float32)
    burst = np.random.default_rng(1).standard_normal(800).astype(np.float32) * np.exp(-np.arange(800) / 200)
    for time_s in times_s:
        start = round(time_s * RATE_HZ)
        wave[start: start + 800] += 0.3 * burst[: len(wave) - start]
    return wave.astype(np.float32)


def test_onsets_are_found_where_clicks_are() -> None:
    times_s = [0.06, 0.5, 1.25, 1.55, 4.0]
    mel_BMN = LogMel(MelConfig())(torch.from_numpy(clicks(times_s))[None])
    found = onset_times(mel_BMN[0].numpy(), 0.01)
    assert found.tolist() == pytest.approx(times_s, abs=0.04)
    assert not len(onset_times(np.full((512, 64), -11.5, np.float32), 0.01))


@pytest.mark.slow
@pytest.mark.parametrize("bpm", [72, 100, 150])
def test_the_tempo_of_a_metronome(bpm: int) -> None:
    pytest.importorskip("librosa")
    found = tempo_of(clicks(list(np.arange(0.06, 5.0, 60 / bpm))), RATE_HZ)
    assert min(abs(found * factor / bpm - 1) for factor in (0.5, 1, 2)) < 0.03


class ByLoudness(Tagger):
    """Says piano where a window is loud, else flute; rock drums where its first bin is high."""

    def forward(self, mel_BMN: Tensor) -> tuple[Tensor, Tensor]:
        loud, low = mel_BMN[..., 32:].mean(dim=(1, 2)), mel_BMN[..., :4].mean(dim=(1, 2))
        return loud[:, None].expand(-1, 4), torch.stack([-(low + 5), low + 5, -(loud + 5), loud + 5], dim=1)


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> EventsEmbedder:
    monkeypatch.setattr("musiccm.embedders.events.tempo_of", lambda wave, rate_hz: 120.0)
    return EventsEmbedder(ByLoudness({"tags": TAGS}), MelConfig())


def test_windows_are_read_in_their_order_and_compared_with_what_is_asked(embedder: EventsEmbedder) -> None:
    noise = torch.randn(81920, generator=torch.Generator().manual_seed(0))
    silent_then_loud = torch.cat([1e-4 * noise[:40960], 0.3 * noise[40960:]])
    waves = torch.stack([silent_then_loud, silent_then_loud.flip(0)])
    found = embedder(waves, RATE_HZ)
    assert found.embedding_RE.shape == (2, 8) and (found.embedding_RE[0, :4] < found.embedding_RE[0, 4:]).all()
    assert torch.allclose(found.embedding_RE[0, :4], found.embedding_RE[1, 4:], atol=0.3)
    labels = {"form": "then", "sounds": "flute + piano", "order": "flute > piano + rock drums", "tempo_bpm": "118"}
    metric = AttributeAccuracy(embedder.groups)
    metric.update(found.logits_BG, embedder.asked([labels, labels]), ["rises", "falls"])
    assert metric.compute() == {"n": 2, "acc_sounds": None, "acc_sounds_chance": None, "acc_order": 0.5,
                                "acc_order_chance": None, "acc_count": None, "acc_count_chance": None,
                                "acc_tempo_bpm": 1.0, "acc_tempo_bpm_chance": None}


def test_labels_become_columns(embedder: EventsEmbedder) -> None:
    asked = embedder.asked([
        {"form": "alone", "sounds": "piano", "count": "3", "strokes_s": "0.06 5.12"},
        {"form": "then", "sounds": "piano + rock drums", "order": "rock drums > piano"}, {},
    ])
    named = [{tag: float(value) for tag, value in zip(embedder.tags, row, strict=True) if value != -1} for row in asked]
    assert named[0] == pytest.approx({"instrument 1/1": 1, "drums 1/1": 0, "onset 0": 3, "onset 1": 0, "onset 2": 4.97})
    # of drums alone no instrument is asked
    assert named[1:] == [{"drums 1/2": 1, "instrument 2/2": 1, "drums 2/2": 0}, {}]


def test_it_states_attributes_before_the_tagger_and_is_no_classifier(embedder: EventsEmbedder) -> None:
    extractor = FeatureExtractor([embedder], None, RATE_HZ)
    assert extractor.tagger is embedder and extractor.classifies() == {"events": False}
    assert extractor.wanted([{"tempo_bpm": "90"}]).shape == (1, len(embedder.tags))
    with pytest.raises(MusiccmError, match="group 'instrument'"):
        EventsEmbedder(Tagger({"tags": ["drums:none", "drums:rock"]}), MelConfig())


def test_what_sounds_fills_a_window() -> None:
    mel = torch.full((2, 10, 3), -11.0)
    mel[0, 2:5] = torch.tensor([1.0, 0.0, -1.0])[:, None]
    mel[1, 0], mel[1, 9] = 2.0, 1.0
    found = sounding(mel, 12)
    assert found[0, :, 0].tolist() == [1, 0, -1] * 4
    assert torch.equal(found[1], torch.cat([mel[1], mel[1, :2]])), "silence between sounds stays"
    assert torch.equal(sounding(torch.full((1, 4, 2), -11.5), 2), torch.full((1, 2, 2), -11.5))


def test_windows_lie_in_their_part_whatever_the_tempo() -> None:
    """A border is on the beat nearest to an equal part: of 66 to 160 bpm, none is within another part's window."""
    seconds_BMN = 0.01 * torch.arange(512.0)[None, :, None].expand(1, 512, 2)
    for sections in (2, 3):
        for place in range(sections):
            window = section_window(seconds_BMN, sections, place)
            for bpm in range(66, 161):
                start_s, end_s = borders_s(bpm, sections)[place: place + 2]
                assert start_s - 0.02 < window.min() and window.max() < end_s, (sections, place, bpm)


def test_what_labels_tell_of_each_part() -> None:
    values = {"instrument": ["flute", "piano"], "drums": ["none", "rock"]}
    assert told_sections({"form": "then", "sounds": "flute + piano"}) is None
    assert told_sections({"form": "together", "sounds": "flute + rock drums"}) == ["flute + rock drums"]
    parts = told_sections({"form": "joins", "sounds": "flute + rock drums", "order": "rock drums > flute + rock drums"})
    assert [told_values(part, values) for part in parts] == [[-1, 1], [0, 1]]
