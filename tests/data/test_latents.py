from __future__ import annotations

import json

import pytest
import torch
from small_corpus import write_corpus

from musiccm.data.audiostock import read_audiostock
from musiccm.data.latent_windows import LatentWindows
from musiccm.data.latents import LatentCache, cache_key, plan_windows, write_cache
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError

SAMPLES = 8000
RATE_HZ = 16000


def fake_encode(windows):
    """Values that tell which window and which caption they belong to."""
    code = [float(sum(w.id.encode()) + w.start % 97) for w in windows]
    base = torch.tensor(code).view(-1, 1, 1, 1)
    texts = [[float(sum(c.encode())), float(len(c))] for w in windows for c in w.captions]
    return {"mean": base * torch.ones(1, 2, 3, 4), "std": torch.full((len(windows), 2, 3, 4), 0.25),
            "clap_audio": torch.tensor([[c, -c] for c in code]), "clap_text": torch.tensor(texts)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def make_cache(root, folder, windows_per_track=1, model="abc", encode=fake_encode, **options):
    clips, _ = read_audiostock(root, "train")
    windows = plan_windows(clips, SAMPLES, RATE_HZ, windows_per_track)
    key = cache_key(clips, SAMPLES, RATE_HZ, windows_per_track, model)
    write_cache(folder, key, windows, encode, shard_size=6, **options)
    return key, windows


@pytest.mark.parametrize("in_memory", [True, False])
def test_every_window_reads_back_its_own_values(root, tmp_path, in_memory):
    key, windows = make_cache(root, tmp_path, windows_per_track=3)
    cache = LatentCache(tmp_path, key, in_memory)
    expected = fake_encode(windows)
    assert len(cache) == 60 and cache.windows == windows
    torch.testing.assert_close(torch.stack([cache.audio(row) for row in range(len(cache))]), expected["clap_audio"])
    for row in (0, 5, 6, 31, 59):
        mean, std = cache.moments(row)
        torch.testing.assert_close(mean, expected["mean"][row], rtol=1e-3, atol=0)
        assert mean.dtype == torch.float32 and torch.equal(std, torch.full((2, 3, 4), 0.25))
        for number, caption in enumerate(windows[row].captions):
            assert cache.text(row, number).tolist() == [sum(caption.encode()), len(caption)]


def test_planned_windows(root):
    clips, _ = read_audiostock(root, "train")
    assert [w.start for w in plan_windows(clips, SAMPLES, RATE_HZ, 1)[:2]] == [12000, 12000]
    three = plan_windows(clips, SAMPLES, RATE_HZ, 3)[:3]
    assert [(w.id, w.start) for w in three] == [("train_000@0", 0), ("train_000@1", 12000), ("train_000@2", 24000)]
    assert len(plan_windows(clips, 99999, RATE_HZ, 3)) == len(clips)  # shorter than a window: only one to take


def test_a_killed_run_goes_on_after_its_last_whole_shard(root, tmp_path):
    make_cache(root, tmp_path / "whole")
    encoded = []

    def dies(windows):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(windows[0].id)
        return fake_encode(windows)

    with pytest.raises(KeyboardInterrupt):
        make_cache(root, tmp_path / "cache", encode=dies)
    with pytest.raises(MusiccmError, match="2 of 4 shards are missing"):
        LatentCache(tmp_path / "cache")
    again, found = [], []
    key, _ = make_cache(root, tmp_path / "cache", skipped=found.append,
                        encode=lambda windows: again.append(windows[0].id) or fake_encode(windows))
    assert (encoded, again, found) == (["train_000", "train_006"], ["train_012", "train_018"], [6, 6])
    for name in sorted(p.name for p in (tmp_path / "whole").iterdir()):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cache" / name).read_bytes()


def test_a_damaged_shard_is_named_and_written_again(root, tmp_path):
    key, _ = make_cache(root, tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises(MusiccmError, match="shard-00001.*damaged"):
        LatentCache(tmp_path, key)
    make_cache(root, tmp_path)
    assert shard.read_bytes() == whole


def test_a_foreign_cache_is_refused_with_the_reason(root, tmp_path):
    key, _ = make_cache(root, tmp_path, model="abc")
    with pytest.raises(MusiccmError, match="model is 'abc', expected 'xyz'"):
        LatentCache(tmp_path, {**key, "model": "xyz"})
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


def test_nan_latents_are_refused(root, tmp_path):
    def broken(windows):
        return fake_encode(windows) | {"mean": torch.full((len(windows), 2, 3, 4), 1e6)}

    with pytest.raises(MusiccmError, match="mean is NaN or beyond"):
        make_cache(root, tmp_path, encode=broken)


def test_drawn_latents_have_the_moments(root, tmp_path):
    make_cache(root, tmp_path)
    data = LatentWindows(LatentCache(tmp_path), [4], seed=1)
    draws = torch.stack([data[(epoch, 0)]["latents_CTF"] for epoch in range(400)]) - data[0]["latents_CTF"]
    assert abs(float(draws.mean())) < 4 * 0.25 / draws.numel() ** 0.5
    assert float(draws.std()) == pytest.approx(0.25, rel=0.03)
    assert {data[(epoch, 0)]["caption"] for epoch in range(40)} == set(data.cache.windows[4].captions)
    item = data[(7, 0)]
    assert item["text_D"].tolist() == [sum(item["caption"].encode()), len(item["caption"])]


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
    trained = {data.latent_cache("train").windows[row].clip_id for row in data.latent_rows("train")}
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
    windows = plan_windows(read_audiostock(root, "train")[0], SAMPLES, RATE_HZ, 3)
    trained_on = [window for window in windows if window.clip_id not in held_out]
    assert len(held_out) == 2 and ids == [window.clip_id for window in trained_on] and len(ids) == 54
    torch.testing.assert_close(audio_ND, fake_encode(trained_on)["clap_audio"])
    without = MusicDataModule(str(root), clip_samples=SAMPLES)
    without.setup("fit")
    with pytest.raises(MusiccmError, match="cache_dir"):
        without.train_clap_audio()
