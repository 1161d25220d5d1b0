"""The text encoder's stage: it learns what captions say, reads any text, and what it leaves conditions as any T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tiny_bundle import build_random_bundle

from musiccm.data.demo.events.captions_module import SLOTS, CaptionModule, said
from musiccm.data.demo.events.wording import Sentence
from musiccm.data.demo.events.world import Event, Scene
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.borrow import begin_bundle
from musiccm.models.bundle.text_tokenizer import train_text_tokenizer
from musiccm.systems.stages.text import TextStage, near_numbers
from musiccm.texts import read_json

T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
      "dropout_rate": 0.0}


def test_a_tokenizer_reads_any_text_ends_it_and_keeps_digits_single() -> None:
    tokenizer = train_text_tokenizer(["first a flute melody, then rock drums, 126 bpm"] * 4, vocab_size=300)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    assert pad == 0 and tokenizer("").input_ids == [end] and tokenizer("flute").input_ids[-1] == end
    for text in ("126 bpm", "日本の笛, ça va?", "a Flute  melody"):
        ids = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.lower()
    digits = tokenizer.convert_ids_to_tokens(tokenizer("at 126").input_ids)
    assert digits[-4:] == ["1", "2", "6", "</s>"]
    assert tokenizer("A FLUTE").input_ids == tokenizer("a flute").input_ids


def test_what_a_caption_says_by_slot() -> None:
    scene = Scene("then", (Event("strokes", "bells", 2), Event("melody", "guitar")), 126, "middle", "major", 0, 0.1)
    places = said(scene, Sentence("", None, "fast"))
    values = {slot: SLOTS[slot][place] for slot, place in zip(SLOTS, places, strict=True)}
    assert values == {"form": "then", "sound_1": "bells", "sound_2": "guitar", "sound_3": "none", "kind_1": "strokes",
                      "kind_2": "melody", "kind_3": "none", "count": "2", "tempo": "fast", "bpm": "unsaid"}


def test_targets_of_numbers_are_bells_that_leave_none_alone() -> None:
    found = near_numbers(torch.tensor([0, 1, 5]), 10, 1.5)
    assert torch.allclose(found.sum(dim=1), torch.ones(3)) and found.argmax(dim=1).tolist() == [0, 1, 5]
    assert found[0].tolist() == [1.0] + [0.0] * 9 and found[1:, 0].tolist() == [0.0, 0.0]
    assert (found[2, 4] / found[2, 5]).item() == pytest.approx(0.8007, abs=1e-3)  # exp(-1 / 4.5)
    assert torch.equal(near_numbers(torch.tensor([3]), 5, 0.0), torch.tensor([[0.0, 0.0, 0.0, 1.0, 0.0]]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TextStage]:
    root = tmp_path_factory.mktemp("text")
    base = build_random_bundle(root / "base")
    begin_bundle(root / "work", f"../{base.name}")
    stage = TextStage(T5, bundle=str(root / "work"), vocab_size=500, tokenizer_captions=60, lr=5e-3, warmup_steps=5,
                      ema_decay=None)
    data = CaptionModule(tracks=16, val_tracks=4, batch_size=16, eval_batch_size=4)
    trainer = pl.Trainer(max_steps=60, accelerator="cpu", default_root_dir=root, val_check_interval=60, logger=False,
                         num_sanity_val_steps=0, check_val_every_n_epoch=None, enable_progress_bar=False,
                         enable_model_summary=False, enable_checkpointing=False)
    trainer.fit(stage, data)
    return root / "work", stage


def test_it_learns_the_captions_that_it_reads(trained: tuple[Path, TextStage]) -> None:
    _, stage = trained
    data = CaptionModule(tracks=16, batch_size=16)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        found = stage.summarise([stage.measure(batch, torch.Generator())])
    chance = max(torch.bincount(batch.said_BK[:, 1]).tolist()) / 16
    assert found["accuracy_sound_1"] > chance + 0.2 and found["accuracy_kind_3"] > 0.8
    assert set(found) == {"n", "accuracy_all", "accuracy_bpm_exact", *(f"accuracy_{slot}" for slot in SLOTS)}


def test_the_bundle_conditions_by_its_tokens_whatever_else_is_in_the_batch(trained: tuple[Path, TextStage]) -> None:
    folder, stage = trained
    bundle = Bundle.from_pretrained(folder, ["text_encoder", "tokenizer", "vae"])
    assert bundle.gives_tokens and not (folder / "vae").exists()
    quality = read_json(folder / "quality" / "text.json", "what a stage measured")
    assert quality["steps"] == 60 and quality["n"] == 4
    conditioner: Any = bundle.conditioner()
    short, long = "two bell strokes", "first a flute melody, then a fast guitar solo at 126 bpm"
    alone, both = conditioner.text([short]), conditioner.text([long, short])
    length = int(alone.mask_BL.sum())
    assert both.mask_BL.sum(dim=1).tolist() == [both.mask_BL.shape[1], length]
    assert torch.allclose(both.tokens_BLD[1, :length], alone.tokens_BLD[0], atol=1e-5)
    assert conditioner.null(1).mask_BL.sum() == 1 and conditioner.width == 32
    # the same words in another order are another condition, token by token and as a set
    twins = conditioner.text(["first a flute melody, then an organ solo", "first an organ solo, then a flute melody"])
    pooled = twins.tokens_BLD.sum(dim=1)
    assert (pooled[0] - pooled[1]).norm() > 1e-3 * pooled[0].norm()
    weights = stage.part.state_dict()
    written = bundle.text_encoder.state_dict()
    assert all(torch.equal(value.half().float(), written[name]) for name, value in weights.items() if name in written)


def test_a_bundle_borrows_all_but_what_reads_captions(tmp_path: Path) -> None:
    build_random_bundle(tmp_path / "base")
    parts = begin_bundle(tmp_path / "new", "../base")
    assert "vae" in parts and not {"unet", "scheduler", "text_encoder", "tokenizer", "feature_extractor"} & set(parts)
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir() if path.suffix == ".json"}
    assert begin_bundle(tmp_path / "new", "../base") == parts
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir() if path.suffix == ".json"}
    with pytest.raises(MusiccmError, match="does not borrow these parts of ../base"):
        begin_bundle(tmp_path / "base", "../base")
    assert Bundle.from_pretrained(tmp_path / "new", ["vae"]).codec("none").normalise is not None


def test_data_without_slots_is_refused(tmp_path: Path) -> None:
    class Other(CaptionModule):
        slots = {}  # type: ignore[assignment]

    stage = TextStage(T5, bundle=str(tmp_path))
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", default_root_dir=tmp_path, logger=False,
                         enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False)
    with pytest.raises(MusiccmError, match=r"data\.class_path.*CaptionModule, found Other"):
        trainer.fit(stage, Other(tracks=4, batch_size=2))
