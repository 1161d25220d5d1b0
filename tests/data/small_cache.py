"""A latent cache whose values tell which window and which caption they belong to."""

from __future__ import annotations

import torch

from musiccm.data.corpora.audiostock import read_audiostock
from musiccm.data.latent_cache.files import CacheWriter, cache_key
from musiccm.data.latent_cache.window_index import WindowIndex

SAMPLES, RATE_HZ = 8000, 16000


def fake_encode(index, unit):
    """What `Encoder` would hand to `CacheWriter.write`."""
    if unit.kind == "text":
        texts = [index.captions[number] for number in range(unit.first, unit.last)]
        return {"clap_text": torch.tensor([[float(sum(t.encode())), float(len(t))] for t in texts])}
    rows = range(unit.first, unit.last)
    code = [float(sum(index.id(row, index.clip_of(row)).encode()) + index.starts_N[row] % 97) for row in rows]
    return {"mean": torch.tensor(code).view(-1, 1, 1, 1) * torch.ones(1, 2, 3, 4),
            "std": torch.full((len(rows), 2, 3, 4), 0.25), "clap_audio": torch.tensor([[c, -c] for c in code])}


def make_writer(root, folder, windows_per_track=1, model="abc", shard_size=6):
    clips, _ = read_audiostock(root, "train")
    key = cache_key(clips, SAMPLES, RATE_HZ, windows_per_track, model)
    return CacheWriter(folder, key, WindowIndex.plan(clips, SAMPLES, RATE_HZ, windows_per_track), shard_size)


def write_all(writer, overwrite=False):
    writer.begin(overwrite)
    for unit in writer.units():
        if not writer.is_written(unit):
            writer.write(unit, fake_encode(writer.index, unit))
    return writer


def make_cache(root, folder, windows_per_track=1, model="abc", overwrite=False):
    return write_all(make_writer(root, folder, windows_per_track, model), overwrite)
