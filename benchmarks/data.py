"""Latent batches a second from the cache, memory and opening of a large index, windows of an mp3, rate of encoding."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from musiccm.audio.windows import keyed_generator
from musiccm.columns import StringColumn
from musiccm.commands._timing import row, seconds_of
from musiccm.data.batch import LatentBatch
from musiccm.data.latent_cache.dataset import LatentCache
from musiccm.data.latent_cache.files import FORMAT, CacheWriter
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.latent_cache.windows import LatentWindows, collate_latents
from musiccm.data.sampling import KeyedLoader, ShuffledSampler
from musiccm.data.waveforms import pick

#: What is asked for.
ASKED_WINDOWS_PER_S, ASKED_OPEN_S, ASKED_MEMORY_MB, ASKED_TIMES_TRAINING = 20_000, 1.0, 300.0, 10.0
TINY, FULL, WIDTH = (8, 64, 8), (8, 256, 16), 512
BATCH, LARGE, WINDOWS_PER_CLIP, ROUNDS, WORKERS = 64, 1_000_000, 8, 3, 2
#: Length of the mp3 that windows are cut from.
LONG_MP3_S = 600
#: A sample of a full-size distillation step: six U-Net calls of 92 GFLOP (the student's, with its gradient, counts as
#: three), at the peak of an A100 in bf16, 312 TFLOP/s, which no training reaches.
TRAINING_PER_S = 312e12 / (6 * 92e9)


def make_index(windows: int) -> WindowIndex:
    """Clips with two captions each, as long as Audiostock's."""
    clips = windows // WINDOWS_PER_CLIP
    words = [f"a calm and warm piano melody over soft strings with light percussion, number {n}" for n in range(clips)]
    return WindowIndex(
        StringColumn.pack([f"audiostock/{n:07d}" for n in range(clips)]),
        StringColumn.pack([f"{word}, {take}" for word in words for take in ("slow", "at eighty beats")]),
        np.arange(0, 2 * clips + 1, 2), np.arange(0, windows + 1, WINDOWS_PER_CLIP),
        np.tile(np.arange(WINDOWS_PER_CLIP) * 100_000, clips), True,
    )


def write_cache(folder: Path, index: WindowIndex, shape: Sequence[int]) -> None:
    """A cache of noise."""
    writer, generator = CacheWriter(folder, {"format": FORMAT}, index), torch.Generator().manual_seed(0)
    writer.begin()
    for unit in writer.units():
        count = unit.last - unit.first
        width = torch.randn(count, WIDTH, generator=generator)
        latents = {"mean": torch.randn(count, *shape, generator=generator), "clap_audio": width,
                   "std": torch.rand(count, *shape, generator=generator)}
        writer.write(unit, latents if unit.kind == "shard" else {"clap_text": width})


class OneByOne(Dataset):
    """The baseline: each item drawn and stacked by itself, from tensors in memory."""

    def __init__(self, data: LatentWindows) -> None:
        self.data, index = data, data.cache.index
        rows = np.arange(len(index))
        parts = [data.cache.moments(part) for part in np.array_split(rows, max(1, len(rows) // 256))]
        self.mean, self.std = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        self.audio, self.text = data.cache.audio(rows), data.cache.text(np.arange(len(index.captions)))
        self.ids = [index.id(row, index.clip_of(row)) for row in range(len(index))]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, where: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, str, str]:
        epoch, item = where
        index, generator = self.data.cache.index, keyed_generator(0, epoch, self.ids[item], "moments")
        latents = self.mean[item] + self.std[item] * torch.randn(self.mean.shape[1:], generator=generator)
        clip = index.clip_of(item)
        caption = int(index.caption_ends_P1[clip]) + pick(2, 0, epoch, self.ids[item], "caption")
        return latents, self.text[caption], self.audio[item], self.ids[item], index.captions[caption]

    @staticmethod
    def collate(items: list[tuple[Tensor, Tensor, Tensor, str, str]]) -> LatentBatch:
        latents, text, audio, ids, captions = zip(*items, strict=True)
        return LatentBatch(torch.stack(latents), torch.stack(text), torch.stack(audio), list(ids), list(captions))


def rates(data: Dataset, collate: Callable, workers: int, windows: int) -> Iterator[float]:
    """Windows a second, measured again and again over epochs with the same workers."""
    sampler = ShuffledSampler(len(data), BATCH)  # type: ignore[arg-type]
    loader = KeyedLoader(data, batch_size=BATCH, sampler=sampler, collate_fn=collate, num_workers=workers,
                         persistent_workers=workers > 0)
    batches = endless(loader)
    while True:
        for _ in range(4 * max(workers, 1)):  # what was prepared while nobody asked
            next(batches)
        start = time.perf_counter()
        for _ in range(windows // BATCH):
            next(batches)
        yield windows // BATCH * BATCH / (time.perf_counter() - start)


def endless(loader: KeyedLoader) -> Iterator[LatentBatch]:
    while True:
        yield from loader


def reading(folder: Path) -> list[dict]:
    rows = []
    for name, shape, windows, measured in (("tiny", TINY, 16_384, 8_192), ("full-size", FULL, 2_048, 2_048)):
        write_cache(folder / name, make_index(windows), shape)
        ours = LatentWindows(LatentCache(folder / name), np.arange(windows))
        baseline = OneByOne(ours)
        for workers in (0, WORKERS):
            sides = [rates(ours, collate_latents, workers, measured),
                     rates(baseline, OneByOne.collate, workers, measured)]
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(ROUNDS):
                for side, found in zip(sides, times, strict=True):
                    found.append(next(side))
            what = f"{name} latents {'x'.join(map(str, shape))}, batch {BATCH}, {workers} workers"
            rows.append(row(f"{what}: against item by item", *times, "windows/s", None, lower_is_better=False))
            asked = [ASKED_WINDOWS_PER_S] if name == "tiny" else [TRAINING_PER_S]
            target = 1.0 if name == "tiny" else ASKED_TIMES_TRAINING
            against = "what is asked for" if name == "tiny" else "a training step at an A100's peak"
            rows.append(row(f"{what}: against {against}", times[0], asked, "windows/s", target, lower_is_better=False))
        rows.append(processor_time(ours, f"{name} latents: processor time in one process", measured))
    return rows


def processor_time(data: LatentWindows, case: str, windows: int) -> dict:
    """What a window costs in one process, which other work on the machine disturbs less than the rate."""
    orders = [[(0, n) for n in range(first, first + BATCH)] for first in range(0, windows, BATCH)]
    data.__getitems__(orders[0])
    spent = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for order in orders:
            data.__getitems__(order)
        spent.append((time.process_time() - start) / windows * 1e6)
    noise = torch.empty(data.cache.moments(np.asarray([0]))[0].shape[1:])
    start = time.process_time()
    for _ in range(windows):
        noise.normal_(generator=torch.Generator())
    drawing = (time.process_time() - start) / windows * 1e6
    return row(f"{case}, against drawing its noise alone", spent, [drawing], "us/window")


def memory(data: LatentWindows, workers: int, warmup: int, batches: int) -> list[dict[str, float]]:
    """Megabytes of this process and its loader workers together, before and after some batches, once warmed up.

    A page that several of them share counts once (Linux' proportional set size). `own` leaves out what is mapped from
    files, which the kernel takes back when it needs the room.
    """
    loader = KeyedLoader(data, batch_size=BATCH, sampler=ShuffledSampler(len(data), BATCH), num_workers=workers,
                         collate_fn=collate_latents)
    iterator, found = iter(loader), []
    for count in (warmup, batches):
        for _ in range(count):
            next(iterator)
        total, own = 0, 0
        for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            kilobytes = {words[0]: int(words[1]) for words in map(str.split, lines) if words[-1] == "kB"}
            total += kilobytes["Pss:"]
            own += kilobytes["Pss_Anon:"] + kilobytes["Pss_Shmem:"]
        found.append({"total": total / 1024, "own": own / 1024})
    return found


class IndexOnly(LatentCache):
    """A large index over the files of a small cache: latents of a million windows would be 16 GB."""

    def __init__(self, folder: Path, index: WindowIndex | None = None) -> None:
        super().__init__(folder)
        self.held, self.texts = len(self.index), len(self.index.captions)
        self.index = index or self.index

    def moments(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return super().moments(rows % self.held)

    def audio(self, rows: np.ndarray) -> Tensor:
        return super().audio(rows % self.held)

    def text(self, captions: np.ndarray) -> Tensor:
        return super().text(captions % self.texts)


def index_of_a_million(folder: Path) -> list[dict]:
    path = folder / "large.safetensors"
    make_index(LARGE).save(path)
    opening = [seconds_of(lambda: WindowIndex.load(path)) for _ in range(ROUNDS)]
    rows = [row(f"open an index of {LARGE} windows, against what is asked for", opening, [ASKED_OPEN_S], "s", 1.0)]
    small = folder / "small"
    write_cache(small, make_index(4 * BATCH), (1, 4, 4))
    large = WindowIndex.load(path)
    columns = (large.clip_ids.data_X, large.captions.data_X, large.captions.ends_N1, large.window_ends_P1,
               large.starts_N)
    # The columns are mapped, but not a page of them is there before it is read.
    without = LatentWindows(IndexOnly(small), np.arange(100 * BATCH * 8) % (4 * BATCH))
    before = memory(without, 8, 64, 1)[0]["total"]
    assert all(column.sum() >= 0 for column in columns)
    added = memory(LatentWindows(IndexOnly(small, large), np.arange(LARGE)), 8, 64, 1)[0]["total"] - before
    case = f"memory that an index of {LARGE} windows adds, 8 workers, against what is asked for"
    return [*rows, row(case, [added], [ASKED_MEMORY_MB], "MB", 1.0)]


def memory_over_an_epoch(folder: Path) -> list[dict]:
    windows = 16_384
    data = LatentWindows(LatentCache(folder / "tiny"), np.arange(2 * windows) % windows)
    begin, end = memory(data, WORKERS, windows // BATCH, windows // BATCH)
    case = f"memory but for mapped files after the second {windows} windows, {WORKERS} workers, against after the first"
    return [row(case, [end["own"]], [begin["own"]], "MB")]


def windows_of_an_mp3(folder: Path) -> list[dict]:
    """Processor time of a window of a long mp3, against libsndfile's own jump, after which its beginning is damaged."""
    import soundfile

    from musiccm.audio.io import read_range

    path, rate_hz, seconds = folder / "long.mp3", 44_100, 5
    noise = np.random.default_rng(0).normal(0.0, 0.1, LONG_MP3_S * rate_hz).astype(np.float32)
    soundfile.write(path, noise, rate_hz, bitrate_mode="VARIABLE", compression_level=0.5)
    starts = [int(share * LONG_MP3_S) * rate_hz for share in (0.1, 0.5, 0.9)]

    def jump(start: int) -> None:
        with soundfile.SoundFile(path) as file:
            file.seek(start)
            file.read(seconds * rate_hz, dtype="float32")

    def spent(read: Callable[[int], object]) -> list[float]:
        times = []
        for start in starts * ROUNDS:
            begin = time.process_time()
            read(start)
            times.append((time.process_time() - begin) * 1000)
        return times

    def first(start: int) -> None:
        os.utime(path)  # what is remembered of the file is then taken anew
        read_range(path, start, seconds * rate_hz)

    case, jumps = f"{seconds} s of a {LONG_MP3_S // 60}-minute mp3", spent(jump)
    further = spent(lambda start: read_range(path, start, seconds * rate_hz))
    return [row(f"{case}, the file's first window", spent(first), jumps, "ms"),
            row(f"{case}, further ones", further[1:], jumps, "ms")]


def encoding(bundle: str, folder: Path) -> list[dict]:
    """`musiccm prepare latents` on a demo corpus by one process and those that read for it."""
    from musiccm.commands._encode import BATCH_SIZES, make_trainer
    from musiccm.data.demo.corpus import write_corpus
    from musiccm.data.latent_cache.fingerprint import ENCODING_PARTS, bundle_fingerprint
    from musiccm.data.module import MusicDataModule
    from musiccm.models.bundle import Bundle
    from musiccm.systems.encoding.data import EncodingData
    from musiccm.systems.encoding.encoder import Encoder

    write_corpus(folder / "demo", 48, 0, 16, None)
    parts = Bundle.from_pretrained(bundle, parts=ENCODING_PARTS)
    samples = parts.latent_shape()[1] * parts.codec("none").downsampling * parts.mel.hop_length
    data = MusicDataModule(str(folder / "demo"), clip_samples=samples, windows_per_track=2, bundle=bundle,
                           cache_dir=str(folder / "encoded"))
    batch_size = BATCH_SIZES["gpu" if torch.cuda.is_available() else "cpu"]
    work = EncodingData(data, bundle_fingerprint(parts.path), batch_size, tokens=parts.gives_tokens)
    encoder, trainer = Encoder(parts, work), make_trainer("auto")
    trainer.predict(encoder, datamodule=work, return_predictions=False)
    report = encoder.finish(trainer.strategy)
    case = f"encode {report['windows']} windows of {samples / parts.mel.sample_rate_hz:.2f} s, against playing them"
    real_time = parts.mel.sample_rate_hz / samples
    rows = [row(case, [report["windows_per_s"]], [real_time], "windows/s", None, lower_is_better=False)]
    rows += [row(f"share of encoding: {name}", [share], [], "of 1") for name, share in report["shares"].items()]
    rows += [row(f"waiting to encode: {name}", [waited], [report["wall_s"]], "s")
             for name, waited in report["waited_s"].items()]
    return rows


def run(bundle: str) -> list[dict]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return [*index_of_a_million(folder), *reading(folder), *memory_over_an_epoch(folder),
                *windows_of_an_mp3(folder), *encoding(bundle, folder)]
