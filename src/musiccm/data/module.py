"""The one door from a corpus to training: waveforms or cached latents, in loaders that resume exactly."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch import Tensor
from torch.utils.data import Dataset

from musiccm.audio import Conversion
from musiccm.data.corpora.labels import Clip
from musiccm.data.corpora.reading import Rules
from musiccm.data.corpora.registry import Corpora, corpora_of, first_by_hash
from musiccm.data.corpora.report import Report
from musiccm.data.corpora.shares import Part, limited
from musiccm.data.demo.other_renderings import OtherRenderings, other_renderings
from musiccm.data.demo.worlds import FIRST
from musiccm.data.demo.worlds import demo_world as world_named
from musiccm.data.latent_cache.dataset import LatentCache
from musiccm.data.latent_cache.files import cache_key, token_key
from musiccm.data.latent_cache.fingerprint import bundle_fingerprint, clips_fingerprint, joint_fingerprint
from musiccm.data.latent_cache.windows import LatentWindows, TokenWindows, collate_latents
from musiccm.data.mixtures import MixedClip, MixingCollate, mixed_clips
from musiccm.data.sampling import KeyedLoader, MixedSampler, OrderedSampler, ShuffledSampler
from musiccm.data.trajectories.dataset import Trajectories
from musiccm.data.trajectories.files import check_trajectories
from musiccm.data.vocabulary import TagVocabulary
from musiccm.data.waveforms import WaveformWindows, collate_waveforms
from musiccm.errors import MusiccmError
from musiccm.local_models import local_bundle
from musiccm.models.bundle import Bundle
from musiccm.models.melody.tokenizer import tokenizer_of

log = logging.getLogger(__name__)

KINDS = ("waveform", "latent", "tokens")


def split_validation(clips: Sequence[Clip], count: int) -> tuple[list[Clip], list[Clip]]:
    """Hold clips of the train folder out for validation, so that the test folder stays unseen until the end.

    The choice goes by a hash of the clip id: it is the same for every seed and survives adding tracks to the corpus as
    nearly as can be. At most a tenth of the clips are taken, and at least one.

    Args:
        clips: Clips of the train folder.
        count: How many to hold out.

    Returns:
        `(train, validation)`, each in the order of `clips`.
    """
    held_out = first_by_hash(clips, max(1, min(count, len(clips) // 10)))
    return [c for c in clips if c.id not in held_out], [c for c in clips if c.id in held_out]


class MusicDataModule(pl.LightningDataModule):
    """Loaders over one corpus or several.

    Training draws a random window, caption and latent per clip and epoch, keyed by (seed, epoch, id): the same batches
    for any number of workers, and after a resume in the middle of an epoch. Validation (held out of `train/`, or the
    corpus' own where it has one) and test take centred windows and the first caption, in order. The test loader always
    yields waveforms: they are the references that generated audio is measured against.

    Args:
        root: The folder of one corpus.
        kind: `"waveform"` for WaveformBatch, `"latent"` for LatentBatch in training and validation, `"tokens"` for
            TokenBatch.
        clip_samples: Samples in a window at `sample_rate_hz`.
        sample_rate_hz: Rate of the windows.
        batch_size: Items in a training batch of one process.
        eval_batch_size: Items in a validation or test batch; `batch_size` if not given.
        num_workers: Loader processes; 0 reads in the main process.
        seed: Seed of order, windows, captions and latents.
        val_clips: Clips of `train/` held out for validation, at most a tenth of them, or taken of a validation split;
            several corpora share them by their size.
        eval_limit: At most this many validation and test clips; several corpora share them by their size.
        cache_dir: The latent cache that `musiccm prepare latents` wrote; needed for `kind="latent"`.
        bundle: The bundle whose encoders the cache must come from; its own check is left out if not given.
        vocabulary: JSON file with the tag list; the training clips' own labels if not given.
        windows_per_track: Windows of each clip in the latent cache, spread evenly over the track; 1 is the centred one.
        min_duration_s: Shorter tracks count as bad.
        max_bad_fraction: Share of bad items in a corpus above which it is refused.
        corpora: In place of `root`, a list of corpora of any layout: `layout`, `root`, `weight`, `name`, `test` and the
            layout's options (`parse_corpora`). Their clip ids begin with their names where there are several.
        demo_corpora: Which of their folders hold the demo corpus: those alone does `musiccm prepare` write it to.
        demo_world: What it writes there: `music`, `music_paraphrased` or `events`.
        strict: Stop at the first bad item.
        channel: What is read of a file: the `mean` of its channels, or the `first`.
        resampler: `torchaudio` or `soxr`.
        level: Where a file's mean and peak are measured, `native` or `resampled` (`musiccm.audio.Conversion`).
        trajectories_dir: What `musiccm prepare trajectories` wrote: training batches are then paths of a guided teacher
            (TrajectoryBatch) and no recordings. Needs `kind="latent"`.
        mixtures: For each training item so many mixtures of two, under a caption of both: 0.5 is ConsistencyTTA's.
            Waveforms: so many more items in every training batch, drawn anew each time. Latents: so many more clips in
            the cache, as latents cannot be added, drawn once.
        tokens_dir: The cache of semantic tokens that `musiccm prepare tokens` wrote; needed for `kind="tokens"`.
            Batches of `kind="latent"` then have the tokens of their windows too.
        tokenizer: The bundle whose semantic tokenizer they must come from; left unchecked if not given.
        layout: How `root` lies on the disk, a key of `LAYOUTS`; unless given, a manifest where it has one and no
            `label/`, else Audiostock's. The layout's options are given in `corpora`.
    """

    def __init__(
        self,
        root: str | None = None,
        kind: str = "waveform",
        clip_samples: int = 81920,
        sample_rate_hz: int = 16000,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_clips: int = 256,
        eval_limit: int | None = None,
        cache_dir: str | None = None,
        bundle: str | None = None,
        vocabulary: str | None = None,
        windows_per_track: int = 1,
        min_duration_s: float = 1.0,
        max_bad_fraction: float = 0.05,
        corpora: list[dict[str, Any]] | None = None,
        demo_corpora: list[str] | None = None,
        demo_world: str = FIRST,
        strict: bool = False,
        channel: str = "mean",
        resampler: str = "torchaudio",
        level: str = "native",
        trajectories_dir: str | None = None,
        mixtures: float = 0.0,
        tokens_dir: str | None = None,
        tokenizer: str | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__()
        specs = corpora_of({"root": root, "layout": layout, "corpora": corpora, "demo_corpora": demo_corpora})
        world_named(demo_world)  # refuses an unknown one before anything is read
        if kind not in KINDS:
            raise MusiccmError(f"data.kind must be one of {', '.join(KINDS)}, found {kind!r}")
        if kind == "latent" and cache_dir is None:
            raise MusiccmError("data.cache_dir is needed where data.kind is 'latent'")
        if kind == "tokens" and tokens_dir is None:
            raise MusiccmError("data.tokens_dir is needed where data.kind is 'tokens'")
        if kind != "latent" and trajectories_dir is not None:
            raise MusiccmError("data.trajectories_dir: trajectories are of latents; expected data.kind 'latent', found "
                               f"{kind!r}")
        if isinstance(mixtures, bool) or not isinstance(mixtures, int | float) or not 0 <= mixtures < math.inf:
            raise MusiccmError(f"data.mixtures: expected a share of at least 0, found {mixtures!r}")
        self.trajectories_dir, self.mixtures = trajectories_dir, mixtures
        least = {"clip_samples": clip_samples, "batch_size": batch_size, "val_clips": val_clips,
                 "eval_batch_size": eval_batch_size, "eval_limit": eval_limit, "windows_per_track": windows_per_track}
        for name, value in least.items():
            if value is not None and value < 1:
                raise MusiccmError(f"data.{name} must be at least 1, found {value}")
        if num_workers < 0 or not 0 <= max_bad_fraction <= 1:
            raise MusiccmError(f"data: expected num_workers of at least 0 and a max_bad_fraction from 0 to 1, found "
                               f"{num_workers} and {max_bad_fraction}")
        self.conversion = Conversion(channel, resampler, level)
        self.corpora = Corpora(specs, Rules(min_duration_s, max_bad_fraction, strict, channel=channel))
        self.root = ", ".join(spec.root for spec in specs)
        self.kind, self.clip_samples, self.sample_rate_hz = kind, clip_samples, sample_rate_hz
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.num_workers, self.seed, self.val_count, self.eval_limit = num_workers, seed, val_clips, eval_limit
        self.cache_dir, self.bundle, self.vocabulary_path = cache_dir, bundle, vocabulary
        self.tokens_dir, self.tokenizer = tokens_dir, tokenizer
        self.windows_per_track = windows_per_track
        self._train_parts: list[list[Clip]] = []
        self._eval_parts: dict[str, list[Part]] = {"val": [], "test": []}
        self._mixed_parts: list[list[MixedClip]] = []
        self._train_folder: list[Clip] = []
        self.train_clips: list[Clip] = []
        self.val_clips: list[Clip] = []
        self.test_clips: list[Clip] = []
        self._vocabulary: TagVocabulary | None = None
        self._caches: dict[str, LatentCache] = {}
        self._token_caches: dict[str, LatentCache] = {}
        self._trajectories: Trajectories | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the corpus' labels and the remembered scan of its audio; the first call on a corpus decodes it once.

        Args:
            stage: Lightning's name of what comes next; every stage needs the training clips, for their tags and for
                nearest-neighbour figures.
        """
        if not self.train_clips:
            self._read_train()
        if stage != "fit" and not self.test_clips:
            self._eval_parts["test"] = self.corpora.test()
            self.test_clips = [clip for part in self._eval_parts["test"] for clip in part.clips]
        if self.kind != "waveform" and self.tokens_dir is not None:
            self.token_cache("train")
        if self.kind == "latent":
            self.latent_cache("train")
            if stage == "fit" and self.trajectories_dir is not None:
                self.trajectories()

    def _read_train(self) -> None:
        found = self.corpora.train()
        total = sum(len(train) for train, _ in found)
        for spec, (train, validation) in zip(self.corpora.specs, found, strict=True):
            self._train_folder += [*train, *validation]
            count = round(self.val_count * len(train) / max(total, 1))
            if validation:
                chosen = first_by_hash(validation, max(1, count))
                validation = [clip for clip in validation if clip.id in chosen]
            else:
                train, validation = split_validation(train, count)
            self._train_parts.append(train)
            self._eval_parts["val"].append(Part(spec.name, validation, len(validation)))
            self.val_clips += validation
        self.train_clips = [clip for part in self._train_parts for clip in part]
        if self.mixtures:
            window = (self.clip_samples, self.sample_rate_hz, self.windows_per_track)
            self._mixed_parts = [mixed_clips(part, self.mixtures, *window) for part in self._train_parts]

    @property
    def reports(self) -> dict[str, Report]:
        """What reading the corpora found: by split, or by `<name>/<split>` where there are several."""
        return self.corpora.reports

    def clips(self, split: str) -> list[Clip]:
        """All clips of `train`, which those for validation and mixtures belong to, or `test`, sorted by id."""
        mixed = [clip for part in self._mixed_parts for clip in part]
        return sorted([*self._train_folder, *mixed] if split == "train" else self.test_clips, key=lambda clip: clip.id)

    def _cached_parts(self) -> list[list[Clip]]:
        """What of the latent cache is trained on, corpus by corpus: the clips, and their mixtures."""
        mixed = self._mixed_parts or [[] for _ in self._train_parts]
        return [[*part, *own] for part, own in zip(self._train_parts, mixed, strict=True)]

    def training_key(self) -> dict[str, Any]:
        """What decides which windows of which clips a step is given, by the keys below `data.init_args`.

        For a run that goes on, which must notice other data. Of the batch size its checkpoints speak themselves.
        """
        return {
            "corpora": clips_fingerprint(self.train_clips),
            "corpora.weight": None if self.corpora.weights is None else list(self.corpora.weights),
            "clip_samples": self.clip_samples,
            "windows_per_track": self.windows_per_track,
            "seed": self.seed,
            **({"mixtures": self.mixtures} if self.mixtures else {}),
            **({} if self.trajectories_dir is None else {"trajectories": self.trajectories().key}),
            **({} if self.tokens_dir is None else {"tokenizer": self.token_cache("train").key["tokenizer"]}),
        }

    def trajectory_key(self) -> dict[str, Any]:
        """What of the data a teacher's trajectories must have been made from: which captions, in which order."""
        return {
            "latents": self.latent_cache("train").key,
            "trained": clips_fingerprint(self.train_clips),
            "weights": "none" if self.corpora.weights is None else list(self.corpora.weights),
            "order": self.seed,
            **({"mixtures": self.mixtures} if self.mixtures else {}),
        }

    def training_items(self, count: int) -> list[tuple[int, int]]:
        """The first items that training would draw from the latent cache, epoch after epoch: `(epoch, item)`."""
        sampler = self._train_sampler(len(self.latent_rows("train")), 1)
        items: list[tuple[int, int]] = []
        for epoch in itertools.count():
            if len(items) >= count:
                break
            items += [(drawn, item) for drawn, item in sampler.order(epoch).tolist()]
        return items[:count]

    def trajectories(self) -> Trajectories:
        """The teacher's paths in `trajectories_dir`, checked on opening.

        Raises:
            MusiccmError: They are missing, unfinished, or made from other captions.
        """
        if self._trajectories is None:
            folder, key = self.trajectories_dir, self.trajectory_key()
            count = check_trajectories(folder, key)["paths"]
            self._trajectories = Trajectories(str(folder), key, self.latents("train"), self.training_items(count))
        return self._trajectories

    def latent_key(self, split: str, model: str | None = None, tokens: bool | None = None) -> dict[str, Any]:
        """What the latent cache of a folder must have been made from.

        Args:
            split: `"train"` or `"test"`.
            model: Fingerprint of the bundle; computed if not given, unchecked where the bundle is not on this disk.
            tokens: Whether the bundle's text encoder gives tokens; found out or left unchecked likewise.
        """
        folder = local_bundle(self.bundle) if self.bundle else None
        if folder is not None and (model is None or tokens is None):
            bundle = Bundle.from_pretrained(folder, parts=())
            model = bundle_fingerprint(bundle) if model is None else model
            tokens = bundle.gives_tokens if tokens is None else tokens
        return cache_key(
            self.clips(split), self.clip_samples, self.sample_rate_hz, self.windows_per_track, model, self.conversion,
            tokens,
        )

    def latent_cache(self, split: str) -> LatentCache:
        """The cache of a folder, `"train"` (which holds the validation clips too) or `"test"`, checked on opening.

        Raises:
            MusiccmError: It is missing, unfinished, or made from another corpus, bundle or window length.
        """
        if split not in self._caches:
            if self.cache_dir is None:
                raise MusiccmError("data.cache_dir is needed to read latents")
            self._caches[split] = LatentCache(Path(self.cache_dir) / split, self.latent_key(split))
        return self._caches[split]

    def token_key(self, split: str, model: str | None = None, tokenizer: str | None = None) -> dict[str, Any]:
        """What the cache of semantic tokens of a folder must have been made from.

        Args:
            split: `"train"` or `"test"`.
            model: Hash of the CLAP; computed if not given, unchecked where the bundle is not on this disk.
            tokenizer: Fingerprint of the tokenizer; read, or left unchecked where `tokenizer` names none.
        """
        if model is None and self.bundle and (folder := local_bundle(self.bundle)) is not None:
            model = joint_fingerprint(Bundle.from_pretrained(folder, parts=()))
        if tokenizer is None and self.tokenizer is not None:
            tokenizer = tokenizer_of(self.tokenizer).fingerprint
        windows = cache_key(self.clips(split), self.clip_samples, self.sample_rate_hz, self.windows_per_track, None,
                            self.conversion)
        return token_key(windows, model, tokenizer)

    def token_cache(self, split: str) -> LatentCache:
        """The cache of semantic tokens of a folder, `"train"` or `"test"`, checked on opening.

        Raises:
            MusiccmError: It is missing, unfinished, or made from another corpus, tokenizer, CLAP or window length.
        """
        if split not in self._token_caches:
            if self.tokens_dir is None:
                raise MusiccmError("data.tokens_dir is needed to read semantic tokens")
            self._token_caches[split] = LatentCache(Path(self.tokens_dir) / split, self.token_key(split))
        return self._token_caches[split]

    def _cache(self, folder: str) -> LatentCache:
        """The cache that batches are drawn from."""
        return self.token_cache(folder) if self.kind == "tokens" else self.latent_cache(folder)

    def latent_rows(self, split: str) -> np.ndarray:
        """Rows of the cache that belong to `"train"`, `"val"` or `"test"`; outside training one window a clip."""
        folder = "test" if split == "test" else "train"
        index = self._cache(folder).index
        if split == "train":
            return index.rows_of(self._clip_numbers(folder, [clip for part in self._cached_parts() for clip in part]))
        return index.middle_rows(self._clip_numbers(folder, self.eval_clips(split)))

    def eval_parts(self, split: str, limit: int | None = None) -> list[Part]:
        """What is evaluated on, corpus by corpus.

        Args:
            split: `"val"` or `"test"`.
            limit: At most this many clips of all corpora together, beside `eval_limit`; each has its share by its size.

        Returns:
            The clips, and as `asked` what there would be if none were bad; nobody fills another corpus' share.
        """
        limits = [number for number in (limit, self.eval_limit) if number is not None]
        return limited(self._eval_parts[split], min(limits, default=None))

    def eval_clips(self, split: str, limit: int | None = None) -> list[Clip]:
        """The clips of `eval_parts`, corpus after corpus."""
        return [clip for part in self.eval_parts(split, limit) for clip in part.clips]

    def _clip_numbers(self, folder: str, clips: Sequence[Clip]) -> np.ndarray:
        """Where clips stand in the cache of a folder, which was made from all its clips in this order."""
        numbers = {clip.id: number for number, clip in enumerate(self.clips(folder))}
        return np.asarray([numbers[clip.id] for clip in clips], np.int64)

    def train_clap_audio(self) -> tuple[list[str], Tensor]:
        """CLAP embeddings of everything that is trained on: what generated clips are compared with for plagiarism.

        Returns:
            `(ids, audio_ND)`: a row for every window of every training clip, under the clip's id, in the cache's order;
            none for mixtures of them.

        Raises:
            MusiccmError: There is no latent cache, or it is unfinished or stale, or its bundle embeds no audio.
        """
        cache = self._cache("train")
        rows = cache.index.rows_of(self._clip_numbers("train", self.train_clips))
        return [cache.index.clip_ids[clip] for clip in cache.index.clips_of(rows)], cache.audio(rows)

    def latents(self, split: str) -> LatentWindows:
        """The cached windows of `"train"`, `"val"` or `"test"` as a data set."""
        folder = "test" if split == "test" else "train"
        tokens = None if self.tokens_dir is None else self.token_cache(folder)
        return LatentWindows(self.latent_cache(folder), self.latent_rows(split), self.seed, tokens)

    def tokens(self, split: str) -> TokenWindows:
        """The semantic tokens of `"train"`, `"val"` or `"test"` as a data set, of `kind="tokens"`."""
        cache = self.token_cache("test" if split == "test" else "train")
        return TokenWindows(cache, self.latent_rows(split), self.seed)

    @property
    def vocabulary(self) -> TagVocabulary | None:
        """The tags of `WaveformBatch.tags_BG`; None for a corpus without any."""
        if self._vocabulary is None:
            if self.vocabulary_path:
                self._vocabulary = TagVocabulary.load(Path(self.vocabulary_path))
            elif any(clip.tags or clip.attributes for clip in self.train_clips):
                self._vocabulary = TagVocabulary.from_clips(self.train_clips)
        return self._vocabulary

    def waveforms(self, split: str, limit: int | None = None) -> WaveformWindows:
        """The windows of `"train"`, `"val"` or `"test"` as a data set; a bare index gives the centred window.

        Args:
            split: Which clips.
            limit: For validation and test, at most so many, see `eval_parts`.
        """
        clips = self.train_clips if split == "train" else self.eval_clips(split, limit)
        return WaveformWindows(
            clips, self.clip_samples, self.sample_rate_hz, self.vocabulary, self.seed, self.conversion
        )

    def other_renderings(self, split: str, limit: int | None = None, number: int = 1) -> OtherRenderings | None:
        """Other pieces of the same attributes as the clips of `waveforms`, as far as these are the demo's.

        Args:
            split: `"val"` or `"test"`.
            limit: See `eval_parts`.
            number: Which of the other pieces, from 1.

        Returns:
            A window a clip, under its id and caption; None for corpora that are not composed.
        """
        return other_renderings(self.eval_clips(split, limit), self.clip_samples, self.sample_rate_hz, number)

    def train_dataloader(self) -> KeyedLoader:
        """Shuffled training batches, mixed by weight where the corpora have weights."""
        if self.trajectories_dir is not None:  # which captions they were made for has the corpora's weights already
            paths = self.trajectories()
            order = ShuffledSampler(len(paths), self.batch_size, self.seed)
            return self._loader(paths, collate_latents, order, self.batch_size, drop_last=True)
        dataset, collate = self._dataset("train")
        if self.mixtures and self.kind == "waveform":
            collate = MixingCollate(self.mixtures, self.batch_size, self.sample_rate_hz, self.seed)
        sampler = self._train_sampler(len(dataset), self.batch_size)
        return self._loader(dataset, collate, sampler, self.batch_size, drop_last=True)

    def _train_sampler(self, size: int, batch_size: int) -> ShuffledSampler:
        if self.corpora.weights is None:
            return ShuffledSampler(size, batch_size, self.seed)
        if self.kind != "waveform":
            index = self._cache("train").index
            sizes = [int(index.window_counts(self._clip_numbers("train", part)).sum()) for part in self._cached_parts()]
        else:
            sizes = [len(part) for part in self._train_parts]
        return MixedSampler(sizes, self.corpora.weights, batch_size, self.seed)

    def val_dataloader(self) -> KeyedLoader:
        """Held-out clips of the train folder, in order."""
        dataset, collate = self._dataset("val")
        return self._loader(dataset, collate, OrderedSampler(len(dataset)), self.eval_batch_size)

    def test_dataloader(self) -> KeyedLoader:
        """Reference waveforms with captions and ids, in order."""
        self.setup("test")
        dataset = self.waveforms("test")
        return self._loader(dataset, collate_waveforms, OrderedSampler(len(dataset)), self.eval_batch_size)

    def _dataset(self, split: str) -> tuple[Dataset, Callable[[Any], Any]]:
        if self.kind == "latent":
            return self.latents(split), collate_latents
        if self.kind == "tokens":
            return self.tokens(split), collate_latents
        return self.waveforms(split), collate_waveforms

    def _loader(
        self, dataset: Dataset, collate: Callable, sampler: Any, batch_size: int, drop_last: bool = False
    ) -> KeyedLoader:
        # from page-locked memory a batch goes to a GPU without a wait
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return KeyedLoader(
            dataset, batch_size=batch_size, sampler=sampler, collate_fn=collate, drop_last=drop_last,
            num_workers=self.num_workers, persistent_workers=self.num_workers > 0, pin_memory=on_gpu,
        )
