"""Mixtures: behind a batch of waveforms, and as further clips of a latent cache."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from small_cache import SAMPLES, fake_encode, write_all
from small_corpus import RATE_HZ, write_corpus

from musiccm.audio.windows import read_window
from musiccm.data.latent_cache.files import CacheWriter
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.mixtures import draw_pairs, mixed_caption, mixed_clips
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.systems.encoding.data import EncodingData
from musiccm.systems.encoding.reading import WorkItems


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), train=14, test=2)


def module(root, **options):
    settings = {"clip_samples": SAMPLES, "batch_size": 4, "val_clips": 2, "seed": 3, "mixtures": 0.5, **options}
    data = MusicDataModule(str(root), **settings)
    data.setup("fit")
    return data


def content(batch):
    return batch.ids, batch.captions, batch.waveform_BS.tolist(), batch.attributes, batch.tags_BG.tolist()


def test_pairs_are_different_and_drawn_evenly():
    for size, count in ((2, 1), (5, 10), (40, 20), (100_000, 50_000)):
        pairs = draw_pairs(size, count, "x", size)
        assert len({frozenset(pair) for pair in pairs}) == count and all(i != j for i, j in pairs)
        assert pairs == draw_pairs(size, count, "x", size) and max(map(max, pairs)) < size
    assert pairs != draw_pairs(size, count, "y", size)
    # all ten pairs of five, both ways round
    drawn = [pair for n in range(4000) for pair in draw_pairs(5, 1, n)]
    counts = [drawn.count(pair) + drawn.count(pair[::-1]) for pair in combinations(range(5), 2)]
    expected = len(drawn) / 10
    assert sum((count - expected) ** 2 / expected for count in counts) < 27.9  # chi-square, 9 degrees, p = 0.001
    assert abs(sum(i < j for i, j in drawn) - 2000) < 4 * math.sqrt(1000)


def test_captions_are_joined():
    assert mixed_caption("A dog barks", "Rain falls on Mars") == "A dog barks and rain falls on Mars"
    assert mixed_caption("A", "") == "A and "


def test_half_a_batch_of_mixtures_stands_behind_it(root):
    data, plain = module(root), module(root, mixtures=0.0)
    for mixed, own in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert len(mixed) == 6 and len(own) == 4
        assert [part[:4] for part in content(mixed)] == list(content(own))
        for place in (4, 5):
            i, j = (own.ids.index(name) for name in mixed.ids[place].split("+"))
            assert i != j and mixed.captions[place] == f"{own.captions[i]} and {own.captions[j]}"  # lower case anyway
            # a mixture is a sum of the two and nothing else, at the windows' peak
            both = torch.stack([own.waveform_BS[i], own.waveform_BS[j], torch.ones(SAMPLES)], 1).double()
            found = torch.linalg.lstsq(both, mixed.waveform_BS[place].double()[:, None]).solution
            assert torch.allclose((both @ found)[:, 0], mixed.waveform_BS[place].double(), atol=1e-6)
            assert found[:2].min() > 0.1 and float(mixed.waveform_BS[place].abs().max()) == pytest.approx(0.5, abs=1e-6)
            assert mixed.tags_BG[place].tolist() == torch.maximum(own.tags_BG[i], own.tags_BG[j]).tolist()
            shared = own.attributes[i].items() & own.attributes[j].items()
            assert mixed.attributes[place] == dict(shared)
        assert mixed.ids[4] != mixed.ids[5]
    assert [len(batch) for batch in data.val_dataloader()] == [1]


def test_the_same_mixtures_in_any_worker_and_after_a_resume(root):
    epochs = [[content(batch) for batch in loader] for loader in [module(root).train_dataloader()] for _ in range(2)]
    assert [batch[0] for batch in epochs[0]] != [batch[0] for batch in epochs[1]]
    loader = module(root, num_workers=2).train_dataloader()
    assert [[content(batch) for batch in loader] for _ in range(2)] == epochs
    resumed = module(root).train_dataloader()
    resumed.load_state_dict({"epoch": 1, "batch": 1})
    assert [content(batch) for batch in resumed] == epochs[1][1:]
    assert [content(batch) for batch in module(root, seed=4).train_dataloader()] != epochs[0]


def test_a_batch_without_room_for_them_is_refused(root):
    for batch_size, mixtures in ((1, 0.5), (4, 2.0)):
        with pytest.raises(MusiccmError, match=r"data.mixtures is .*: expected between 1 and \d+ mixtures in a batch"):
            module(root, batch_size=batch_size, mixtures=mixtures).train_dataloader()
    for wrong in (-0.5, math.inf, "half", True):
        with pytest.raises(MusiccmError, match="data.mixtures: expected a share"):
            module(root, mixtures=wrong)
    with pytest.raises(MusiccmError, match=r"13 training clips have 78 pairs, and 130 are asked for"):
        module(root, mixtures=10)
    with pytest.raises(MusiccmError, match=r"data.mixtures is 0.01: expected at least 1 mixture of 13 training clips"):
        module(root, kind="latent", cache_dir="unused", mixtures=0.01)


def write_cache(data, folder):
    index = WindowIndex.plan(data.clips("train"), SAMPLES, RATE_HZ, data.windows_per_track)
    return write_all(CacheWriter(folder, data.latent_key("train"), index, 6), encode=fake_encode)


@pytest.mark.parametrize("windows", [1, 3])
def test_a_cache_holds_mixtures_as_further_clips(root, tmp_path, windows):
    options = {"kind": "latent", "cache_dir": str(tmp_path), "windows_per_track": windows, "mixtures": 1.0}
    planned = module(root, **options | {"kind": "waveform"})
    index = write_cache(planned, tmp_path / "train").index
    mixed = {clip.id: clip for clip in planned.clips("train") if "+" in clip.id}
    assert len(mixed) == len(planned.train_clips) == 13 and len(index) == 14 * windows + 13
    held_out = {clip.id for clip in planned.val_clips}
    assert not any(set(name.split("+")) & held_out for name in mixed)
    data = module(root, **options)
    batches = [batch for _ in range(2) for batch in data.train_dataloader()]
    drawn = [name.split("@")[0] for batch in batches[: len(batches) // 2] for name in batch.ids]
    assert len(drawn) == (13 * windows + 13) // 4 * 4 and sum("+" in name for name in drawn) >= 13 - 3
    for batch in batches:
        for name, caption in zip(batch.ids, batch.captions, strict=True):
            if "+" in name:
                assert caption in mixed[name.split("@")[0]].captions
    (name, clip), *_ = mixed.items()
    by_id = {part.id: part for part in data.train_clips}
    parts = [by_id[part] for part in name.split("+")]
    assert clip.captions == [f"{a} and {b}" for a, b in zip(*(part.captions for part in parts), strict=True)]
    # what belongs to real clips alone sees none of them
    assert not any("+" in found for found in data.train_clap_audio()[0])
    assert not any("+" in found.id for found in data.train_clips)
    assert module(root, **options, seed=7).latent_key("train") == data.latent_key("train")
    with pytest.raises(MusiccmError, match="stale latent cache"):
        module(root, **options | {"mixtures": 0.5})
    assert data.training_key()["mixtures"] == 1.0 and "mixtures" not in module(root, mixtures=0.0).training_key()


def test_encoding_reads_both_files_of_a_mixture(root, tmp_path):
    data = module(root, cache_dir=str(tmp_path), windows_per_track=3)
    work = EncodingData(data, "model", 4)
    work._open()
    loader_index, clips = work.writers["train"].index, data.clips("train")
    items = WorkItems(data, {"train": loader_index}, [])
    row = next(row for row in range(len(loader_index)) if "+" in clips[loader_index.clip_of(row)].id)
    clip = clips[loader_index.clip_of(row)]
    parts = torch.stack([read_window(part.path, part.audio, SAMPLES, RATE_HZ, start)
                         for part, start in zip(clip.parts, clip.starts, strict=True)] + [torch.ones(SAMPLES)], 1)
    found = items.window("train", row).double()
    weights = torch.linalg.lstsq(parts.double(), found[:, None]).solution
    assert torch.allclose((parts.double() @ weights)[:, 0], found, atol=1e-6) and weights[:2].min() > 0.05
    # three windows of a clip of 2 s begin at 0, 0.75 and 1.5 s
    assert set(clip.starts) <= {0, 12000, 24000}


def test_mixtures_of_no_clips_are_none():
    assert mixed_clips([], 0.5, 100, RATE_HZ, 1) == []
