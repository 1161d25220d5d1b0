"""Several corpora in one experiment: ids, shares, splits, workers, resuming, caches."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_cache import write_all
from small_corpus import RATE_HZ, sound, write_clip, write_corpus
from small_mtat import path_of, write_mtat

from musiccm.config import load_experiment
from musiccm.data.corpora.registry import parse_corpora
from musiccm.data.corpora.shares import share_out
from musiccm.data.latent_cache.files import CacheWriter
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError

SAMPLES = 8000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora")
    write_corpus(folder / "stock", train=22, test=3)
    write_mtat(folder / "mtat", {n: ("0123456789abcdef"[n % 16], ["guitar", "slow"]) for n in range(2000, 2032)})
    return folder


def corpora(folder, weights=(1, 1), **options):
    return [{"layout": "audiostock", "root": str(folder / "stock"), "weight": weights[0], "name": "stock"},
            {"layout": "magnatagatune", "root": str(folder / "mtat"), "weight": weights[1], **options}]


def module(folder, stage="fit", **options):
    defaults = {"corpora": corpora(folder), "clip_samples": SAMPLES, "batch_size": 4, "val_clips": 4, "seed": 3}
    data = MusicDataModule(**{**defaults, **options})
    data.setup(stage)
    return data


def as_tuples(batches):
    return [(b.ids, b.captions, b.start_s, b.waveform_BS.sum(1).tolist()) for b in batches]


def names(ids):
    return Counter(name.split("/")[0] for name in ids)


def test_splits_of_both_come_together_under_ids_of_their_own(folder):
    data = module(folder, "test", eval_batch_size=20)
    assert names(c.id for c in data.train_clips) == {"stock": 20, "magnatagatune": 24}
    assert names(c.id for c in data.test_clips) == {"stock": 3, "magnatagatune": 6}
    # Audiostock's are held out of train/, MagnaTagATune's are in folder c
    assert names(c.id for c in data.val_clips) == {"stock": 2, "magnatagatune": 2}
    assert all(int(c.id.split("/")[1]) % 16 == 12 for c in data.val_clips if c.id.startswith("magna"))
    ids = [clip.id for clip in data.clips("train") + data.clips("test")]
    assert len(set(ids)) == len(ids) == 22 + 24 + 2 + 3 + 6
    assert set(data.reports) == {f"{n}/{s}" for n in ("stock", "magnatagatune") for s in ("train", "test")} | {
        "magnatagatune/validation"}
    (batch,) = data.test_dataloader()
    assert len(batch) == 9 and batch.ids[0] == "stock/test_000"


def test_one_corpus_in_a_list_is_the_same_as_its_root(folder):
    options = {"clip_samples": SAMPLES, "batch_size": 4, "val_clips": 2, "seed": 3}
    single = MusicDataModule(str(folder / "stock"), **options)
    listed = MusicDataModule(corpora=[{"layout": "audiostock", "root": str(folder / "stock")}], **options)
    for data in (single, listed):
        data.setup("test")
    assert single.latent_key("train") == listed.latent_key("train") and single.train_clips == listed.train_clips
    assert as_tuples(single.train_dataloader()) == as_tuples(listed.train_dataloader())
    assert set(single.reports) == set(listed.reports) == {"train", "test"}


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0.8)])
def test_an_epoch_has_the_shares_asked_for(folder, weights):
    loader = module(folder, corpora=corpora(folder, weights)).train_dataloader()
    visited = [name for batch in loader for name in batch.ids]
    assert len(visited) == 44
    assert names(visited)["stock"] == pytest.approx(44 * weights[0] / sum(weights), abs=1)


def test_without_weights_every_clip_comes_once_an_epoch(folder):
    data = module(folder, corpora=corpora(folder, (None, None)))
    visited = [name for batch in data.train_dataloader() for name in batch.ids]
    assert len(visited) == len(set(visited)) == 44


def test_the_same_for_any_workers_and_after_a_resume_within_an_epoch(folder):
    expected = module(folder, corpora=corpora(folder, (1, 4))).train_dataloader()
    expected = as_tuples(expected) + as_tuples(expected)
    # a clip that an epoch visits twice is another window
    windows = [(name, start) for batch in expected for name, start in zip(batch[0], batch[2], strict=True)]
    assert len(set(windows)) == len(windows) and max(Counter(name for name, _ in windows).values()) >= 3
    for workers in (0, 2):
        loader = module(folder, corpora=corpora(folder, (1, 4)), num_workers=workers).train_dataloader()
        iterator = iter(loader)
        for _ in range(5):
            next(iterator)
        resumed = module(folder, corpora=corpora(folder, (1, 4)), num_workers=workers).train_dataloader()
        resumed.load_state_dict(loader.state_dict())
        resumed.sampler.set_epoch(0)
        assert as_tuples(resumed) + as_tuples(resumed) == expected[5:]


def test_latents_are_mixed_by_weight_and_the_cache_stands_changes_of_weights_and_validation(folder, tmp_path):
    encoded = module(folder, "test")
    index = WindowIndex.plan(encoded.clips("train"), SAMPLES, RATE_HZ, 2)
    key = encoded.latent_key("train") | {"windows_per_track": 2}
    write_all(CacheWriter(tmp_path / "train", key, index, shard_size=10))
    options = {"kind": "latent", "cache_dir": str(tmp_path), "windows_per_track": 2}
    for weights, val_clips in (((1, 1), 4), ((1, 3), 2)):
        data = module(folder, corpora=corpora(folder, weights), val_clips=val_clips, **options)
        visited = [name for batch in data.train_dataloader() for name in batch.ids]
        assert len(visited) == 88 and names(visited)["stock"] == pytest.approx(88 * weights[0] / sum(weights), abs=1)
        held_out = {clip.id for clip in data.val_clips}
        assert not held_out & {name.split("@")[0] for name in visited}
    with pytest.raises(MusiccmError, match="stale latent cache"):
        module(folder, corpora=corpora(folder, draw=9), **options)


def test_audio_that_another_corpus_tests_on_or_holds_is_left_out(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "c")
    root = tmp_path / "c"
    (root / "stock" / "train" / "leak.mp3").write_bytes((root / "mtat" / path_of(2013, "d")).read_bytes())
    (root / "stock" / "train" / "twin.mp3").write_bytes((root / "mtat" / path_of(2001, "1")).read_bytes())
    for name in ("leak", "twin"):
        (root / "stock" / "label" / f"{name}.json").write_text(json.dumps({"text": ["x"]}))
    data = module(root, max_bad_fraction=0.1)
    assert {i.id: i.reason for i in data.reports["stock/train"].bad} == {"leak": "in_test"}
    assert {i.id: i.reason for i in data.reports["magnatagatune/train"].bad} == {"2001": "duplicate"}
    assert "stock/twin" in {clip.id for clip in data.clips("train")}


def test_strict_stops_at_the_first_bad_item(folder, tmp_path):
    shutil.copytree(folder / "stock", tmp_path / "c")
    write_clip(tmp_path / "c", "train", "silent", np.zeros(32000, np.float32))
    write_clip(tmp_path / "c", "train", "fine", sound(77))
    MusicDataModule(str(tmp_path / "c")).setup("fit")
    with pytest.raises(MusiccmError, match=r"silent\.flac: silent"):
        MusicDataModule(str(tmp_path / "c"), strict=True).setup("fit")


def test_no_corpus_fills_another_ones_share(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "c")
    root = tmp_path / "c"

    def used(data, limit):
        assert [clip.id for clip in data.waveforms("test", limit).clips] == [
            clip.id for part in data.eval_parts("test", limit) for clip in part.clips]
        return {part.name: (len(part.clips), part.asked) for part in data.eval_parts("test", limit)}

    stock, mtat = corpora(root)
    alone = [{**stock, "test": 3}, {**mtat, "test": 0}]
    assert used(module(root, "test", corpora=alone), 1000) == {"stock": (3, 3), "magnatagatune": (0, 0)}
    both = module(root, "test")
    assert used(both, None) == {"stock": (3, 3), "magnatagatune": (6, 6)}
    # 3 to 6, then by the largest remainder: 4 x 3/9 = 1.33, 4 x 6/9 = 2.67
    assert used(both, 4) == {"stock": (1, 1), "magnatagatune": (3, 3)}
    assert used(module(root, "test", eval_limit=3), 4) == {"stock": (1, 1), "magnatagatune": (2, 2)}
    for name in ("test_000", "test_001"):
        (root / "stock" / "test" / f"{name}.flac").write_bytes(b"")
    spoilt = {"max_bad_fraction": 0.9}
    assert used(module(root, "test", corpora=alone, **spoilt), 1000) == {"stock": (1, 3), "magnatagatune": (0, 0)}
    assert used(module(root, "test", **spoilt), 6) == {"stock": (1, 2), "magnatagatune": (4, 4)}
    # held-out clips are shared too, not the first corpus' alone
    assert [len(part.clips) for part in both.eval_parts("val", 2)] == [1, 1]


@pytest.mark.parametrize(("asked", "limit"), [([1000, 3], 1000), ([3, 6, 2], 5), ([7], 3), ([5, 0, 5], 3), ([1, 1], 9)])
def test_shares_are_whole_and_nearest_to_the_proportion(asked, limit):
    shares = share_out(asked, limit)
    assert sum(shares) == min(limit, sum(asked)) and all(0 <= s <= a for s, a in zip(shares, asked, strict=True))
    assert all(abs(s - a * min(1, limit / sum(asked))) < 1 for s, a in zip(shares, asked, strict=True))


def test_a_demo_corpus_of_an_older_version_is_refused_where_it_is_named_as_one(tmp_path):
    write_corpus(tmp_path / "demo", train=20, test=3)
    options = {"clip_samples": SAMPLES, "demo_corpora": [str(tmp_path / "demo") + "/"]}
    with pytest.raises(MusiccmError, match=r"without validation/.*prepare demo --out .*demo"):
        MusicDataModule(str(tmp_path / "demo"), **options).setup("fit")
    MusicDataModule(str(tmp_path / "demo"), clip_samples=SAMPLES).setup("fit")  # anybody's corpus needs none
    for n in range(3):
        write_clip(tmp_path / "demo", "validation", f"validation_{n}", sound(500 + n))
    data = MusicDataModule(str(tmp_path / "demo"), **options, val_clips=2)
    data.setup("fit")
    assert len(data.train_clips) == 20 and len(data.val_clips) == 2
    assert {clip.id[:10] for clip in data.val_clips} == {"validation"} and len(data.clips("train")) == 23


@pytest.mark.parametrize(("items", "message"), [
    ([{"layout": "audiostock", "root": "x", "test": -1}], r"test must be a number of test clips.*-1"),
    ([{"layout": "audiostock", "root": "x", "test": 0}], "test is 0 for every corpus"),
    ([], "at least one corpus"), (["x"], r"corpora\[0\]: expected layout"), ([{"root": "x"}], "layout must be one of"),
    ([{"layout": "audiostock"}], r"corpora\[0\]\.root"),
    ([{"layout": "audiostock", "root": "x", "weight": 0}], "above 0, found 0"),
    ([{"layout": "audiostock", "root": "x", "weight": "much"}], "found 'much'"),
    ([{"layout": "audiostock", "root": "x", "draw": 5}], "unknown draw; audiostock takes layout"),
    ([{"layout": "audiostock", "root": "x"}, {"layout": "audiostock", "root": "y"}], "audiostock names more than one"),
    ([{"layout": "audiostock", "root": "x", "weight": 1}, {"layout": "manifest", "root": "y"}], "a weight, or none"),
])
def test_impossible_corpora_are_named(items, message):
    with pytest.raises(MusiccmError, match=message):
        parse_corpora(items)


def test_root_or_corpora():
    with pytest.raises(MusiccmError, match="found neither"):
        MusicDataModule()
    with pytest.raises(MusiccmError, match="found both"):
        MusicDataModule("x", corpora=[{"layout": "audiostock", "root": "x"}])


def manifest(root, clips=("a", "b")):
    for split, first in (("train", 0), ("test", 100)):
        for n, name in enumerate(clips):
            write_clip(root, split, name, sound(first + n))
        (root / f"{split}.csv").write_text("path,caption\n" + "".join(f"{split}/{n}.flac,song {n}\n" for n in clips))
    shutil.rmtree(root / "label")
    return root


def test_a_root_alone_with_a_manifest_is_read_as_one(folder, tmp_path):
    root = str(manifest(tmp_path / "mine"))
    for given in ({}, {"layout": "manifest"}):
        data = MusicDataModule(root, clip_samples=SAMPLES, max_bad_fraction=0.0, **given)
        data.setup("test")
        assert {clip.id: clip.captions for clip in (*data.train_clips, *data.val_clips, *data.test_clips)} == {
            f"{split}/{name}": [f"song {name}"] for split in ("train", "test") for name in "ab"}
    assert MusicDataModule(str(folder / "mtat"), layout="magnatagatune").corpora.specs[0].layout == "magnatagatune"
    stock = tmp_path / "stock"
    shutil.copytree(folder / "stock", stock)
    (stock / "train.csv").write_text("a list of somebody's own\n")
    assert MusicDataModule(str(stock)).corpora.specs[0].layout == "audiostock", "label/ says what it is"


def test_a_layout_that_cannot_be_is_named_and_a_wrong_one_says_where_to_set_it(tmp_path):
    with pytest.raises(MusiccmError, match=r"data.layout must be one of .*manifest.*, found 'csv'"):
        MusicDataModule("x", layout="csv")
    with pytest.raises(MusiccmError, match="data.layout: manifest goes with data.root"):
        MusicDataModule(corpora=[{"layout": "audiostock", "root": "x"}], layout="manifest")
    root = manifest(tmp_path / "mine")
    with pytest.raises(MusiccmError, match=r"label: no such folder.* data.init_args.layout, such as manifest"):
        MusicDataModule(str(root), layout="audiostock").setup("fit")
    (root / "train.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,x,0,rain\n")
    with pytest.raises(MusiccmError, match=r"no column path.*AudioCaps', needs data.init_args.layout"):
        MusicDataModule(str(root)).setup("fit")


def test_the_experiment_that_documents_this_builds_its_data_module():
    path = Path(__file__).parents[2] / "experiments" / "audiostock_magnatagatune.yaml"
    data = MusicDataModule(**load_experiment(path)["data"]["init_args"])
    assert [(spec.name, spec.weight) for spec in data.corpora.specs] == [("audiostock", 9), ("magnatagatune", 5)]
    assert data.corpora.specs[1].options == {"draw": 5000, "draw_seed": 0}
    with pytest.raises(MusiccmError, match="data/audiostock: no such corpus folder"):
        data.setup("fit")
