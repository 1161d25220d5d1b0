"""Other renderings: the same attributes, other notes, under the id and caption of the clip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from musiccm.data.demo import other_renderings as module
from musiccm.data.demo import tracks
from musiccm.data.demo.corpus import write_corpus
from musiccm.data.demo.magnatagatune import write_magnatagatune
from musiccm.data.demo.other_renderings import other_renderings, track_of
from musiccm.data.module import MusicDataModule

SAMPLES = 81920


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    write_corpus(root / "audiostock", 6, seed=3, test_tracks=4, workers=1, validation_tracks=2)
    write_magnatagatune(root / "magnatagatune", 6, seed=4, test_tracks=2, workers=1)
    return root


def module_of(corpora: Path, **options: Any) -> MusicDataModule:
    data = MusicDataModule(clip_samples=SAMPLES, corpora=[
        {"layout": "audiostock", "root": str(corpora / "audiostock")},
        {"layout": "magnatagatune", "root": str(corpora / "magnatagatune")}], **options)
    data.setup("test")
    return data


def test_every_clip_is_rendered_again_from_its_own_attributes(
    corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = module_of(corpora)
    found, clips = data.other_renderings("test"), data.waveforms("test")
    assert len(found) == len(clips) == 6
    rendered: list[Any] = []
    render = tracks.render

    def kept(attributes: Any, *args: Any) -> np.ndarray:
        rendered.append(attributes)
        return render(attributes, *args)

    monkeypatch.setattr(tracks, "render", kept)
    for i in range(len(clips)):
        item, own = found[i], clips[i]
        assert (item["id"], item["caption"], item["attributes"]) == (own["id"], own["caption"], own["attributes"])
        assert item["waveform_S"].shape == own["waveform_S"].shape == (SAMPLES,)
        assert item["waveform_S"].abs().max() <= 0.5 and item["waveform_S"].std() > 0.01
        both = torch.stack([item["waveform_S"], own["waveform_S"]])
        assert torch.corrcoef(both)[0, 1].abs() < 0.9, "another piece, not the same sound"
        if own["attributes"]:  # the labels state what the corpus composed
            assert rendered[-1].labels().items() >= own["attributes"].items()
    assert torch.equal(found[2]["waveform_S"], data.other_renderings("test")[2]["waveform_S"])
    assert found.key["seeds"] == [3, 4] and found.key != data.other_renderings("val", 1).key


def test_clips_of_nobodys_composer_have_no_other_rendering(corpora: Path, tmp_path: Path) -> None:
    data = module_of(corpora)
    clips = data.eval_clips("test")
    assert other_renderings(clips, SAMPLES, 22050) is None and other_renderings([], SAMPLES, 16000) is None
    manifest = corpora / "audiostock" / "corpus.json"
    whole = manifest.read_text()
    for content in (json.dumps({"seed": 3, "composer_version": -1}), "no json", "[]", "{}"):
        manifest.write_text(content)
        assert other_renderings(clips, SAMPLES, 16000) is None
    manifest.unlink()
    assert other_renderings(clips, SAMPLES, 16000) is None
    manifest.write_text(whole)
    assert len(other_renderings(clips, SAMPLES, 16000)) == 6


def test_tracks_are_named_in_both_layouts() -> None:
    assert track_of(Path("x/test/test_000123.flac")) == ("test", 123)
    assert track_of(Path("x/e/demo_composer-world_4_validation-000012-track_12-0-10.mp3")) == ("validation", 12)
    for name in ("song.mp3", "test_12.flac", "my_test_000123.flac"):
        with pytest.raises(KeyError):
            track_of(Path(name))
    assert module._NAME.fullmatch("train_000001")
