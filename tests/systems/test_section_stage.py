"""The tagger of sections: it learns which part of a clip has what, and is what the embedder `events` reads with."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from musiccm.data.batch import WaveformBatch
from musiccm.embedders import load_embedder
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle, save_settings
from musiccm.systems.stages.sections import SectionTaggerStage

SMALL = {"stem_widths": [4, 4, 8], "width": 16, "dilations": [1, 2], "embedding_width": 16}
LABELS = [{"form": "then", "sounds": "bells + flute", "order": "flute > bells"},
          {"form": "then", "sounds": "bells + flute", "order": "bells > flute"},
          {"form": "then", "sounds": "flute + rock drums", "order": "rock drums > flute"},
          {"form": "alone", "sounds": "bells"}]


def sound(order: str) -> torch.Tensor:
    """A tone for each instrument, noise for drums, part after part."""
    parts = order.split(" > ")
    time = torch.arange(81920 // len(parts)) / 16000
    tones = {"flute": torch.sin(2 * torch.pi * 500 * time), "bells": torch.sin(2 * torch.pi * 3000 * time),
             "rock drums": torch.randn(len(time), generator=torch.Generator().manual_seed(0))}
    return torch.cat([0.3 * tones[part] for part in parts])


@pytest.fixture
def batch() -> WaveformBatch:
    waves = torch.stack([sound(labels.get("order", labels["sounds"])) for labels in LABELS])
    return WaveformBatch(waves, torch.zeros(4, 0), list("abcd"), ["x"] * 4, LABELS)


@pytest.mark.filterwarnings("ignore:You defined a .validation_step.")
def test_it_learns_what_each_part_has_and_the_embedder_reads_it(tmp_path: Path, batch: WaveformBatch,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    stage = SectionTaggerStage(SMALL, bundle=str(tmp_path / "work"), lr=1e-2, warmup_steps=2)
    save_settings(tmp_path / "work")
    before = stage.summarise([stage.measure(batch, torch.Generator())])
    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    trainer = pl.Trainer(max_steps=40, accelerator="cpu", default_root_dir=tmp_path, logger=False,
                         enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(stage, loader)
    stage.eval()
    after = stage.summarise([stage.measure(batch, torch.Generator())])
    assert before["accuracy_order"] < 0.5 and after == {
        "n": 4, "accuracy_order": 1.0, "accuracy_instrument": 1.0, "accuracy_drums": 1.0}
    (tmp_path / "work" / "model_index.json").write_text("{}")
    monkeypatch.setattr("musiccm.embedders.events.tempo_of", lambda wave, rate_hz: 100.0)
    reader = load_embedder("events", bundle=tmp_path / "work")
    asked = reader.asked(LABELS)
    read = reader(batch.waveform_BS, 16000).logits_BG
    for group, wanted in (("order", [True, True, True, False]), ("sounds", [False, False, False, True])):
        right, stated = reader.groups[group].compare(read, asked)
        assert stated.tolist() == wanted and right[stated].all(), group
    swapped, _ = reader.groups["order"].compare(read[[1, 0]], asked[[0, 1]])
    assert not swapped.any()


def test_it_begins_with_another_taggers_trunk(batch: WaveformBatch) -> None:
    stage = SectionTaggerStage(trunk="musiccm-tiny")
    theirs = Bundle.from_pretrained("musiccm-tiny", ["evaluators/tagger"]).evaluators["tagger"].state_dict()
    mine = stage.part.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in theirs.items() if not name.startswith("head."))
    assert mine["head.weight"].shape == (13, 128)
    with pytest.raises(MusiccmError, match=r"model\.init_args\.trunk.*another shape"):
        SectionTaggerStage(SMALL, trunk="musiccm-tiny")
    unlabelled = WaveformBatch(batch.waveform_BS, batch.tags_BG, batch.ids, batch.captions)
    with pytest.raises(MusiccmError, match="clip a: its labels do not say"):
        stage.measure(unlabelled, torch.Generator())
