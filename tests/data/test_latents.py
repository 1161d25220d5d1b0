from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cache import RATE_HZ, SAMPLES, fake_encode, make_cache, make_writer
from small_corpus import write_corpus

from musiccm.audio.windows import keyed_generator
from musiccm.columns import StringColumn
from musiccm.data.corpora.audiostock import read_audiostock
from musiccm.data.latent_cache.dataset import LatentCache
from musiccm.data.latent_cache.files import Unit
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.latent_cache.windows import LatentWindows
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.locks import locked_folder
from tests.leftovers import leave_half_file


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def everything(index):
    return fake_encode(index, Unit("shard", 0, 0, len(index)))


def test_every_window_reads_back_its_own_values(root, tmp_path):
    writer = make_cache(root, tmp_path, windows_per_track=3)
    cache, index = LatentCache(tmp_path, writer.key), writer.index
    expected, clips = everything(index), read_audiostock(root, "train")[0]
    assert len(cache) == 60 and cache.key == writer.key
    rows = np.asarray([0, 5, 6, 31, 59, 6])  # of several files, not in order
    mean, std = cache.moments(rows)
    torch.testing.assert_close(mean, expected["mean"][rows], rtol=1e-3, atol=0)
    assert mean.dtype == torch.float32 and torch.equal(std, torch.full((6, 2, 3, 4), 0.25))
    torch.testing.assert_close(cache.audio(np.arange(60)), expected["clap_audio"])
    for number, clip in enumerate(clips):
        assert cache.index.clip_ids[number] == clip.id and cache.index.captions_of(number) == clip.captions
        numbers = np.arange(cache.index.caption_ends_P1[number], cache.index.caption_ends_P1[number + 1])
        assert cache.text(numbers).tolist() == [[sum(c.encode()), len(c)] for c in clip.captions]


def test_planned_windows(root):
    clips, _ = read_audiostock(root, "train")

    def planned(samples, count, first):
        index = WindowIndex.plan(clips, samples, RATE_HZ, count)
        return len(index), [(index.id(row, index.clip_of(row)), int(index.starts_N[row])) for row in range(first)]

    assert planned(SAMPLES, 1, 2) == (20, [("train_000", 12000), ("train_001", 12000)])
    assert planned(SAMPLES, 3, 3) == (60, [("train_000@0", 0), ("train_000@1", 12000), ("train_000@2", 24000)])
    assert planned(99999, 3, 1) == (20, [("train_000@0", 0)])  # shorter than a window: only one to take


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters()) | st.text(st.characters(categories=["Cs"])), min_size=1, max_size=20))
def test_any_text_comes_back_from_its_column(texts):
    column = StringColumn.pack(texts)
    assert [column[n] for n in range(len(column))] == texts


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_rows_and_clips_find_each_other(counts, data):
    ends = np.cumsum([0, *counts])
    names = StringColumn.pack([f"c{n}" for n in range(len(counts))])
    index = WindowIndex(names, names, np.arange(len(counts) + 1), ends, np.zeros(ends[-1], np.int64), True)
    owner = [clip for clip, count in enumerate(counts) for _ in range(count)]
    assert index.clips_of(np.arange(len(owner))).tolist() == owner
    chosen = data.draw(st.lists(st.sampled_from(range(len(counts))), unique=True))
    numbers = np.asarray(chosen, np.int64)
    rows = index.rows_of(numbers).tolist()
    assert rows == [row for clip in chosen for row in range(len(owner)) if owner[row] == clip]
    assert index.window_counts(numbers).tolist() == [counts[clip] for clip in chosen]
    assert [index.id(row, index.clip_of(row)) for row in index.middle_rows(numbers).tolist()] == [
        f"c{clip}@{counts[clip] // 2}" for clip in chosen]


def test_a_killed_run_goes_on_with_what_is_missing(root, tmp_path):
    make_cache(root, tmp_path / "whole")
    writer = make_writer(root, tmp_path / "cache")
    writer.begin()
    units = writer.units()
    assert [(u.kind, u.number, u.first, u.last) for u in units] == [
        ("shard", 0, 0, 6), ("shard", 1, 6, 12), ("shard", 2, 12, 18), ("shard", 3, 18, 20), ("text", 0, 0, 60)]
    writer.write(units[3], fake_encode(writer.index, units[3]))
    leave_half_file(tmp_path / "cache")
    with pytest.raises(MusiccmError, match="4 of 5 files are missing, first shard-00000"):
        LatentCache(tmp_path / "cache")
    again = make_writer(root, tmp_path / "cache", shard_size=99)  # a cache that was begun keeps its own
    assert [unit for unit in again.units() if not again.is_written(unit)] == [*units[:3], units[4]]
    make_cache(root, tmp_path / "cache")
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "whole").iterdir()) and len(names) == 7
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cache" / name).read_bytes()


def test_a_cache_that_is_being_written_is_not_read(root, tmp_path):
    writer = make_cache(root, tmp_path / "cache" / "train")
    with locked_folder(tmp_path / "cache"), pytest.raises(MusiccmError, match=r"being written by `.*` \(process \d+"):
        LatentCache(tmp_path / "cache" / "train", writer.key)
    assert len(LatentCache(tmp_path / "cache" / "train", writer.key)) == 20


def test_a_damaged_file_is_named_and_written_again(root, tmp_path):
    writer = make_cache(root, tmp_path)
    for name, read in (("shard-00001", lambda cache: cache.moments(np.asarray([7]))),
                       ("text-00000", lambda cache: cache.text(np.asarray([0])))):
        path = tmp_path / f"{name}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        with pytest.raises(MusiccmError, match=f"{name}.*damaged"):
            read(LatentCache(tmp_path, writer.key))
        make_cache(root, tmp_path)
        assert path.read_bytes() == whole


def test_a_file_of_another_cache_does_not_count_as_written(root, tmp_path):
    make_cache(root, tmp_path / "a", model="abc")
    writer = make_cache(root, tmp_path / "b", model="xyz")
    (tmp_path / "b" / "shard-00002.safetensors").write_bytes((tmp_path / "a" / "shard-00002.safetensors").read_bytes())
    assert [unit.number for unit in writer.units() if not writer.is_written(unit)] == [2]


def test_a_foreign_cache_is_refused_with_the_reason(root, tmp_path):
    key = make_cache(root, tmp_path, model="abc").key
    with pytest.raises(MusiccmError, match="model is 'abc', expected 'xyz'"):
        LatentCache(tmp_path, {**key, "model": "xyz"})
    with pytest.raises(MusiccmError, match="channel is 'mean', expected 'first'; level is 'native'"):
        LatentCache(tmp_path, {**key, "channel": "first", "level": "resampled"})
    assert len(LatentCache(tmp_path, {**key, "model": None})) == 20
    with pytest.raises(MusiccmError, match="model is 'abc'.*--overwrite"):
        make_cache(root, tmp_path, model="xyz")
    assert LatentCache(tmp_path).key["model"] == "abc"
    make_cache(root, tmp_path, model="xyz", overwrite=True)
    assert LatentCache(tmp_path).key["model"] == "xyz"
    (tmp_path / "index.json").write_text(json.dumps({"key": {}}))
    with pytest.raises(MusiccmError, match="index.json"):
        LatentCache(tmp_path)
    with pytest.raises(MusiccmError, match="no latent cache"):
        LatentCache(tmp_path / "nowhere")


def test_a_cache_of_the_older_format_is_to_be_encoded_again(root, tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"key": {"format": 1, "model": "abc"}, "shard_size": 256,
                                                     "windows": [{"id": "a"}]}))
    (tmp_path / "shard-00000.safetensors").write_bytes(b"old")
    with pytest.raises(MusiccmError, match="its format is 1, .* 2. Encode again.*--overwrite"):
        LatentCache(tmp_path, {"format": 2})
    with pytest.raises(MusiccmError, match="its format is 1"):
        make_cache(root, tmp_path)
    make_cache(root, tmp_path, overwrite=True)
    assert len(LatentCache(tmp_path)) == 20


def test_nan_latents_are_refused(root, tmp_path):
    writer = make_writer(root, tmp_path)
    unit = writer.units()[1]
    broken = fake_encode(writer.index, unit)
    broken["mean"][2] = 1e6
    with pytest.raises(MusiccmError, match="mean is NaN or beyond the range of float16 for train_008"):
        writer.write(unit, broken)
    assert not writer.is_written(unit)


def test_drawn_latents_have_the_moments(root, tmp_path):
    make_cache(root, tmp_path)
    data = LatentWindows(LatentCache(tmp_path), [4], seed=1)
    assert torch.equal(data[0].latents_BCTF, data.cache.moments(np.asarray([4]))[0])
    draws = torch.cat([data[(epoch, 0)].latents_BCTF for epoch in range(400)]) - data[0].latents_BCTF
    assert abs(float(draws.mean())) < 4 * 0.25 / draws.numel() ** 0.5
    assert float(draws.std()) == pytest.approx(0.25, rel=0.03)
    captions = [data[(epoch, 0)].captions[0] for epoch in range(300)]
    counts = [captions.count(caption) for caption in data.cache.index.captions_of(4)]
    assert sum(counts) == 300 and all(abs(count - 100) < 4 * (300 * 2 / 9) ** 0.5 for count in counts)
    batch = data[(7, 0)]
    assert batch.text_BD[0].tolist() == [sum(batch.captions[0].encode()), len(batch.captions[0])]
    # the draw itself, from the key alone
    mean, std = data.cache.moments(np.asarray([4]))
    noise = torch.randn(std.shape[1:], generator=keyed_generator(1, 7, "train_004", "moments"))
    assert torch.equal(batch.latents_BCTF[0], mean[0] + std[0] * noise)


def test_an_item_does_not_depend_on_the_batch_it_comes_in(root, tmp_path):
    make_cache(root, tmp_path, windows_per_track=3)
    data = LatentWindows(LatentCache(tmp_path), np.arange(60), seed=2)
    indices = [(3, 17), (4, 17), (3, 2), (3, 59), 17]
    batch = data.__getitems__(indices)
    for n, index in enumerate(indices):
        alone = data[index]
        assert (alone.ids, alone.captions) == ([batch.ids[n]], [batch.captions[n]])
        for name in ("latents_BCTF", "text_BD", "audio_BD"):
            assert torch.equal(getattr(alone, name)[0], getattr(batch, name)[n])
    assert not torch.equal(batch.latents_BCTF[0], batch.latents_BCTF[1])


def latent_module(root, cache, **options):
    data = MusicDataModule(str(root), "latent", SAMPLES, batch_size=4, val_clips=2, seed=3, cache_dir=str(cache),
                           **options)
    data.setup("fit")
    return data


def as_tuples(batches):
    return [(b.ids, b.captions, b.latents_BCTF.tolist(), b.text_BD.tolist(), b.audio_BD.tolist()) for b in batches]


def test_module_serves_latents_the_same_for_any_workers_and_after_resume(root, tmp_path):
    make_cache(root, tmp_path / "train")
    loader = latent_module(root, tmp_path).train_dataloader()
    expected = as_tuples(loader) + as_tuples(loader)
    assert expected[0][2] != expected[4][2]
    for workers in (0, 2):
        resumed = latent_module(root, tmp_path, num_workers=workers).train_dataloader()
        resumed.load_state_dict({"epoch": 0, "batch": 3})
        assert as_tuples(resumed) + as_tuples(resumed) == expected[3:]


def test_module_validation_uses_means_of_held_out_clips(root, tmp_path):
    make_cache(root, tmp_path / "train", windows_per_track=3)
    data = latent_module(root, tmp_path, windows_per_track=3)
    (batch,) = data.val_dataloader()
    assert batch.ids == [f"{clip.id}@1" for clip in data.val_clips]
    assert batch.captions == [clip.captions[0] for clip in data.val_clips]
    index = data.latent_cache("train").index
    trained = {index.clip_ids[clip] for clip in index.clips_of(data.latent_rows("train"))}
    assert len(data.latent_rows("train")) == 54 and not trained & {clip.id for clip in data.val_clips}


def test_module_refuses_a_cache_of_another_corpus(root, tmp_path):
    make_cache(root, tmp_path / "cache" / "train")
    other = write_corpus(tmp_path / "other", train=20)
    label = other / "label" / "train_003.json"
    label.write_text(label.read_text().replace("a piano", "one piano").replace("a flute", "one flute"))
    (label.parent / "train_004.json").write_text(json.dumps({"text": ["new words"]}))
    with pytest.raises(MusiccmError, match="stale latent cache: corpus is"):
        latent_module(other, tmp_path / "cache")
    with pytest.raises(MusiccmError, match="clip_samples is 8000, expected 4000"):
        MusicDataModule(str(root), "latent", 4000, cache_dir=str(tmp_path / "cache")).setup("fit")


def test_every_training_window_and_no_held_out_one_counts_for_plagiarism(root, tmp_path):
    make_cache(root, tmp_path / "train", windows_per_track=3)
    data = MusicDataModule(
        str(root), "latent", clip_samples=SAMPLES, val_clips=2, cache_dir=str(tmp_path), windows_per_track=3
    )
    data.setup("fit")
    ids, audio_ND = data.train_clap_audio()
    held_out = {clip.id for clip in data.val_clips}
    index = WindowIndex.plan(read_audiostock(root, "train")[0], SAMPLES, RATE_HZ, 3)
    owners = [index.clip_ids[index.clip_of(row)] for row in range(len(index))]
    trained_on = [row for row, owner in enumerate(owners) if owner not in held_out]
    assert len(held_out) == 2 and ids == [owners[row] for row in trained_on] and len(ids) == 54
    torch.testing.assert_close(audio_ND, everything(index)["clap_audio"][trained_on])
    without = MusicDataModule(str(root), clip_samples=SAMPLES)
    without.setup("fit")
    with pytest.raises(MusiccmError, match="cache_dir"):
        without.train_clap_audio()


@pytest.mark.parametrize(("kind", "locked"), [("cuda", True), ("cpu", False)])
def test_batches_for_a_gpu_are_in_page_locked_memory(root, tmp_path, kind, locked):
    make_cache(root, tmp_path / "train")
    data = latent_module(root, tmp_path)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(kind)))
    assert data.train_dataloader().pin_memory is locked
