from __future__ import annotations

import pytest
import torch
from small_corpus import write_corpus

from musiccm.audio import BadAudio, fixed_window, read_audio
from musiccm.data.corpora.audiostock import read_audiostock
from musiccm.data.module import MusicDataModule
from musiccm.data.vocabulary import TagVocabulary
from musiccm.data.waveforms import WaveformWindows
from musiccm.errors import MusiccmError

SAMPLES = 8000


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def module(root, **options):
    data = MusicDataModule(str(root), clip_samples=SAMPLES, batch_size=4, val_clips=2, seed=3, **options)
    data.setup("fit")
    return data


def as_tuples(batches):
    return [(b.ids, b.captions, b.start_s, b.waveform_BS.sum(1).tolist(), b.tags_BG.tolist()) for b in batches]


def test_items_equal_windows_of_the_decoded_file(root):
    clips, _ = read_audiostock(root, "train")
    windows = WaveformWindows(clips, SAMPLES, seed=1)
    whole, _ = read_audio(clips[5].path)
    torch.testing.assert_close(windows[5]["waveform_S"], fixed_window(whole, SAMPLES), atol=2e-6, rtol=0)
    assert windows[5]["caption"] == clips[5].captions[0]
    item = windows[(4, 5)]
    start = round(item["start_s"] * 16000)
    torch.testing.assert_close(item["waveform_S"], fixed_window(whole, SAMPLES, start), atol=2e-6, rtol=0)
    assert item["caption"] in clips[5].captions


def test_windows_and_captions_vary_over_epochs_and_seeds(root):
    clips, _ = read_audiostock(root, "train")
    items = [WaveformWindows(clips, SAMPLES, seed=seed)[(epoch, 5)] for seed in (1, 2) for epoch in range(15)]
    assert len({item["start_s"] for item in items}) > 25
    assert {item["caption"] for item in items} == set(clips[5].captions)


def test_same_batches_for_any_number_of_workers(root):
    def two_epochs(workers):
        loader = module(root, num_workers=workers).train_dataloader()
        return [as_tuples(loader), as_tuples(loader)]

    alone = two_epochs(0)
    assert alone == two_epochs(2)
    assert alone[0] != alone[1]
    assert len(alone[0]) == 4 and len({i for batch in alone[0] for i in batch[0]}) == 16


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(root, workers):
    uninterrupted = module(root).train_dataloader()
    expected = [batch for _ in range(3) for batch in as_tuples(uninterrupted)]
    loader = module(root, num_workers=workers).train_dataloader()
    list(loader)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 1, "batch": 3}
    resumed = module(root, num_workers=workers).train_dataloader()
    resumed.load_state_dict(state)
    resumed.sampler.set_epoch(1)  # as Lightning does
    assert as_tuples(resumed) + as_tuples(resumed) == expected[7:]


def test_state_at_the_end_of_an_epoch_points_to_the_next(root):
    loader = module(root).train_dataloader()
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    assert loader.state_dict() == {"epoch": 1, "batch": 0}


def test_validation_is_held_out_deterministic_and_the_same_for_all_seeds(root):
    first, second = module(root), MusicDataModule(str(root), clip_samples=SAMPLES, val_clips=2, seed=9)
    second.setup("fit")
    assert [c.id for c in first.val_clips] == [c.id for c in second.val_clips]
    train = {c.id for c in first.train_clips}
    assert len(first.val_clips) == 2 and len(train) == 18 and not train & {c.id for c in first.val_clips}
    assert as_tuples(first.val_dataloader()) == as_tuples(second.val_dataloader())


def test_test_loader_gives_references_up_to_the_limit(root):
    batches = list(module(root, eval_limit=3, eval_batch_size=2).test_dataloader())
    assert [b.ids for b in batches] == [["test_000", "test_001"], ["test_002"]]
    assert batches[0].captions[1] == "flute number 1" and batches[0].waveform_BS.shape == (2, SAMPLES)


def test_tags_follow_the_attributes(root, tmp_path):
    data = module(root)
    names = ("drums:none", "drums:rock", "instrument:flute", "instrument:organ", "instrument:piano")
    assert data.vocabulary.names == names
    assert data.vocabulary.groups == {"drums": [0, 1], "instrument": [2, 3, 4]}
    batch = next(iter(data.val_dataloader()))
    for row, attributes in zip(batch.tags_BG, batch.attributes, strict=True):
        assert {names[i] for i in row.nonzero()[:, 0]} == {f"{g}:{v}" for g, v in attributes.items()}
    data.vocabulary.save(tmp_path / "tags.json")
    assert TagVocabulary.load(tmp_path / "tags.json") == data.vocabulary
    with pytest.raises(MusiccmError, match="nothing.json"):
        TagVocabulary.load(tmp_path / "nothing.json")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_vanishes_is_named(tmp_path, workers):
    data = module(write_corpus(tmp_path), num_workers=workers)
    gone = data.train_clips[3].path
    (tmp_path / "train" / f"{data.train_clips[3].id}.flac").unlink()
    with pytest.raises(BadAudio) as caught:
        loader = data.train_dataloader()
        for _ in range(5):  # an epoch leaves two of the 18 clips out
            list(loader)
    assert str(caught.value.path) == gone and caught.value.reason == "missing"


def test_impossible_settings(root):
    with pytest.raises(MusiccmError, match="batch"):
        MusicDataModule(str(root), batch_size=0)
    data = MusicDataModule(str(root), batch_size=64)
    data.setup("fit")
    with pytest.raises(MusiccmError, match="fewer than one batch"):
        data.train_dataloader()
    with pytest.raises(MusiccmError, match="kind"):
        MusicDataModule(str(root), kind="midi")
