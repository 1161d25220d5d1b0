"""Fixed windows of a corpus with their words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from musiccm.audio import BadAudio, Conversion
from musiccm.audio.windows import centred_start, key_hash, random_start, read_window, resampled_length
from musiccm.data.batch import WaveformBatch
from musiccm.data.corpora.labels import Clip
from musiccm.data.vocabulary import TagVocabulary

# What a sampler hands to a data set: which epoch, which item. A bare item number means evaluation.
Index = tuple[int, int] | int


def pick(count: int, *key: int | str) -> int:
    """A number below `count`, uniform, that depends on `key` alone."""
    return key_hash(*key) % count


class WaveformWindows(Dataset):
    """One window a clip: random in training, centred in evaluation.

    An item is a function of (seed, epoch, clip id): the same whichever worker reads it, in whatever order.

    Args:
        clips: The clips.
        clip_samples: Samples in a window.
        sample_rate_hz: Rate of the windows.
        vocabulary: Tags to encode; without one, the tag vectors have no columns.
        seed: Seed of windows and captions.
        conversion: How files are read; `Conversion()` if not given.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        clip_samples: int,
        sample_rate_hz: int = 16000,
        vocabulary: TagVocabulary | None = None,
        seed: int = 0,
        conversion: Conversion | None = None,
    ) -> None:
        self.clips = list(clips)
        self.clip_samples = clip_samples
        self.sample_rate_hz = sample_rate_hz
        self.seed, self.conversion = seed, conversion
        width = len(vocabulary) if vocabulary else 0
        self._tags = torch.stack([vocabulary.encode(c) for c in self.clips]) if vocabulary and self.clips else (
            torch.zeros(len(self.clips), width))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: Index) -> dict | BadAudio:
        """Read one window.

        Args:
            index: `(epoch, item)` in training, which draws the window and the caption; `item` alone in evaluation,
                which takes the middle and the first caption.

        Returns:
            The fields of `WaveformBatch` for one clip, and the epoch; or, if the file cannot be read any more, the
            error, which `KeyedLoader` raises: raised in a worker process, it would arrive as a traceback in a string.
        """
        epoch, item = index if isinstance(index, tuple) else (None, index)
        clip = self.clips[item]
        total = resampled_length(clip.audio, self.sample_rate_hz)
        if epoch is None:
            start, caption = centred_start(total, self.clip_samples), clip.captions[0]
        else:
            start = random_start(total, self.clip_samples, self.seed, epoch, clip.id)
            caption = clip.captions[pick(len(clip.captions), self.seed, epoch, clip.id, "caption")]
        try:
            window = read_window(
                clip.path, clip.audio, self.clip_samples, self.sample_rate_hz, start, self.conversion
            )
        except BadAudio as error:
            return error
        return {
            "waveform_S": window,
            "tags_G": self._tags[item],
            "id": clip.id,
            "caption": caption,
            "attributes": clip.attributes,
            "start_s": start / self.sample_rate_hz,
            "epoch": epoch,
        }


def collate_waveforms(items: Sequence[dict | BadAudio]) -> WaveformBatch | BadAudio:
    """Stack items of `WaveformWindows` into a batch; the first error among them takes its place."""
    read: list[dict] = []
    for item in items:
        if isinstance(item, BadAudio):
            return item
        read.append(item)
    return WaveformBatch(
        waveform_BS=torch.stack([item["waveform_S"] for item in read]),
        tags_BG=torch.stack([item["tags_G"] for item in read]),
        ids=[item["id"] for item in read],
        captions=[item["caption"] for item in read],
        attributes=[item["attributes"] for item in read],
        start_s=[item["start_s"] for item in read],
    )
