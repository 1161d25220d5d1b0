"""Latent caches of bundles that condition by tokens: what is stored, how often, and how a batch gets it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_cache import SAMPLES, fake_tokens, make_cache, make_token_cache
from small_corpus import write_corpus

from musiccm.data.corpora.audiostock import read_audiostock
from musiccm.data.latent_cache.dataset import LatentCache
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.latent_cache.windows import LatentWindows
from musiccm.data.module import MusicDataModule
from musiccm.diffusion import Condition
from musiccm.errors import MusiccmError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """Three windows a clip, captions in several files."""
    folder = tmp_path_factory.mktemp("cache") / "train"
    make_token_cache(root, folder, windows_per_track=3)
    return folder


def words_of(caption):
    return [[sum(caption.encode()), place] for place in range(len(caption.split()))]


def test_each_distinct_caption_is_stored_once_and_without_padding(root, folder):
    captions = [caption for clip in read_audiostock(root, "train")[0] for caption in clip.captions]
    cache = LatentCache(folder)
    assert len(captions) == 60 and list(cache.index.captions) == list(dict.fromkeys(captions))
    stored = [cache._file("text", number)["tokens"] for number in range(len(list(folder.glob("text-*"))))]
    assert len(stored) == 4 and {tokens.dtype for tokens in stored} == {np.dtype(np.float16)}
    assert sum(map(len, stored)) == sum(len(caption.split()) for caption in set(captions))
    for clip, listed in enumerate(read_audiostock(root, "train")[0]):
        assert cache.index.captions_of(clip) == listed.captions


def test_a_batch_has_the_tokens_of_its_captions_padded_to_the_longest(folder):
    data = LatentWindows(LatentCache(folder), np.arange(60), seed=2)
    batch = data.__getitems__([(epoch, item) for epoch in range(3) for item in range(60)])
    assert batch.audio_BD is None and isinstance(batch.text_BD, Condition)
    assert batch.text_BD.tokens_BLD.dtype == torch.float32
    assert batch.text_BD.tokens_BLD.shape[1] == max(len(caption.split()) for caption in batch.captions)
    for caption, tokens, mask in zip(batch.captions, batch.text_BD.tokens_BLD, batch.text_BD.mask_BL, strict=True):
        assert tokens[mask].tolist() == words_of(caption) and not tokens[~mask].any()
    assert {len(caption.split()) for caption in batch.captions} == {2, 3}
    alone = data[(1, 7)]
    row = 60 + 7
    assert alone.captions == [batch.captions[row]] and torch.equal(alone.latents_BCTF[0], batch.latents_BCTF[row])
    assert torch.equal(alone.text_BD.tokens_BLD[0], batch.text_BD[row].tokens_BLD[batch.text_BD[row].mask_BL])
    moved = batch.to(torch.float64)
    assert moved.text_BD.tokens_BLD.dtype == torch.float64 and moved.text_BD.mask_BL.dtype == torch.bool


def test_the_same_windows_and_captions_as_a_cache_of_vectors(root, folder, tmp_path):
    """What is drawn does not depend on the kind of condition."""
    make_cache(root, tmp_path / "train", windows_per_track=3)
    batches = []
    for cache_dir in (tmp_path, folder.parent):
        data = MusicDataModule(str(root), "latent", SAMPLES, batch_size=4, val_clips=2, seed=3, windows_per_track=3,
                               cache_dir=str(cache_dir))
        data.setup("fit")
        batches.append([(b.ids, b.captions, b.latents_BCTF.tolist()) for loader in (data.train_dataloader(),
                                                                                   data.val_dataloader())
                        for b in loader])
    assert batches[0] == batches[1]


def test_a_cache_of_the_other_kind_is_refused_by_name(root, folder, tmp_path):
    vectors = make_cache(root, tmp_path, windows_per_track=3).key
    with pytest.raises(MusiccmError, match="its format is 3, with tokens of captions, and the bundle's text encoder "
                                           "makes 2, a CLAP vector a caption. Encode again"):
        LatentCache(folder, vectors)
    with pytest.raises(MusiccmError, match="its format is 2, with a CLAP vector a caption, .* makes 3"):
        LatentCache(tmp_path, LatentCache(folder).key)
    assert len(LatentCache(folder, {**vectors, "format": None, "model": None})) == 60, "unchecked without the bundle"


def test_embeddings_of_audio_are_asked_for_in_vain(root, folder):
    data = MusicDataModule(str(root), "latent", SAMPLES, val_clips=2, windows_per_track=3, cache_dir=str(folder.parent))
    data.setup("fit")
    with pytest.raises(MusiccmError, match="holds tokens of captions and no embeddings of audio"):
        data.train_clap_audio()


def test_a_killed_run_goes_on_and_a_broken_caption_is_named(root, tmp_path):
    writer = make_token_cache(root, tmp_path / "cache")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()}
    lost = tmp_path / "cache/text-00001.safetensors"
    lost.unlink()
    assert [(u.kind, u.number) for u in writer.units() if not writer.is_written(u)] == [("text", 1)]
    with pytest.raises(MusiccmError, match="1 of 14 files are missing, first text-00001"):
        LatentCache(tmp_path / "cache")
    make_token_cache(root, tmp_path / "cache")
    assert {path.name: path.read_bytes() for path in (tmp_path / "cache").iterdir()} == whole
    unit = next(u for u in writer.units() if (u.kind, u.number) == ("text", 1))
    broken = copy.deepcopy(fake_tokens(writer.index, unit))
    third = int(broken["lengths"][:2].sum())
    broken["tokens"][third, 0] = 1e6
    with pytest.raises(MusiccmError, match=f"tokens is NaN or beyond .* for '{writer.index.captions[unit.first + 2]}'"):
        writer.write(unit, broken)


def test_an_index_without_shared_captions_is_as_it_was(root, tmp_path):
    clips = read_audiostock(root, "train")[0]
    plain = WindowIndex.plan(clips, SAMPLES, 16000, 1)
    plain.save(tmp_path / "index")
    read = WindowIndex.load(tmp_path / "index")
    assert read.caption_numbers_Q is None and len(read.captions) == 60
    assert [read.captions_of(n) for n in range(20)] == [clip.captions for clip in clips]
