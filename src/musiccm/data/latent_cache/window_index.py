"""Which windows a latent cache holds, as columns that are mapped from the disk: a million of them open at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from musiccm.audio.windows import centred_start, resampled_length
from musiccm.columns import StringColumn
from musiccm.data.corpora.labels import Clip
from musiccm.errors import MusiccmError
from musiccm.files import write_atomically


class WindowIndex:
    """The windows of all clips, row by row, those of a clip next to each other; words are stored once a clip, or once.

    A window's id is its clip's, with `@<n>` behind it where `numbered`.

    Args:
        clip_ids: Of the clips, in their order.
        captions: Of all clips, in their order; where `caption_numbers_Q` is given, every distinct one.
        caption_ends_P1: Clip p has captions `[p]` to `[p + 1]` of all clips' captions, int64.
        window_ends_P1: Clip p has rows `[p]` to `[p + 1]` of these, int64.
        starts_N: First sample of each window, at the rate of the cache, int64.
        numbered: Whether clips have several windows.
        caption_numbers_Q: Which of `captions` each of all clips' captions is, int64; None where they are as many.
    """

    def __init__(
        self,
        clip_ids: StringColumn,
        captions: StringColumn,
        caption_ends_P1: np.ndarray,
        window_ends_P1: np.ndarray,
        starts_N: np.ndarray,
        numbered: bool,
        caption_numbers_Q: np.ndarray | None = None,
    ) -> None:
        self.clip_ids, self.captions = clip_ids, captions
        self.caption_ends_P1, self.window_ends_P1, self.starts_N = caption_ends_P1, window_ends_P1, starts_N
        self.numbered, self.caption_numbers_Q = numbered, caption_numbers_Q

    @classmethod
    def plan(
        cls, clips: Sequence[Clip], clip_samples: int, sample_rate_hz: int, windows_per_track: int,
        distinct: bool = False,
    ) -> WindowIndex:
        """Choose the centred window of each clip, or several spread evenly from its beginning to its end.

        Args:
            clips: The clips.
            clip_samples: Samples in a window.
            sample_rate_hz: Their rate.
            windows_per_track: Windows of each clip.
            distinct: Whether a caption that several clips have is stored once.

        Returns:
            The index.
        """
        starts = [window_starts(clip, clip_samples, sample_rate_hz, windows_per_track) for clip in clips]
        captions, numbers = [caption for clip in clips for caption in clip.captions], None
        if distinct:
            places = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
            numbers = np.asarray([places[caption] for caption in captions], np.int64)
            captions = list(places)
        return cls(
            StringColumn.pack([clip.id for clip in clips]),
            StringColumn.pack(captions),
            np.cumsum([0, *(len(clip.captions) for clip in clips)], dtype=np.int64),
            np.cumsum([0, *map(len, starts)], dtype=np.int64),
            np.asarray([start for own in starts for start in own], np.int64),
            windows_per_track > 1,
            numbers,
        )

    def __len__(self) -> int:
        return len(self.starts_N)

    def clips_of(self, rows: np.ndarray) -> np.ndarray:
        """The numbers of the clips that rows belong to."""
        return np.searchsorted(self.window_ends_P1, rows, side="right") - 1

    def clip_of(self, row: int) -> int:
        """The number of the clip that a row belongs to."""
        return int(self.clips_of(np.asarray(row)))

    def rows_of(self, clips: np.ndarray) -> np.ndarray:
        """All rows of clips, clip after clip."""
        first, counts = self.window_ends_P1[clips], self.window_counts(clips)
        before = np.cumsum(counts) - counts
        return np.arange(counts.sum()) + np.repeat(first - before, counts)

    def window_counts(self, clips: np.ndarray) -> np.ndarray:
        """How many windows each of these clips has."""
        return self.window_ends_P1[clips + 1] - self.window_ends_P1[clips]

    def middle_rows(self, clips: np.ndarray) -> np.ndarray:
        """The row in the middle of each clip."""
        return self.window_ends_P1[clips] + self.window_counts(clips) // 2

    def id(self, row: int, clip: int) -> str:
        """The id of a window, given its clip's number."""
        name = self.clip_ids[clip]
        return f"{name}@{row - self.window_ends_P1[clip]}" if self.numbered else name

    def captions_of(self, clip: int) -> list[str]:
        """The captions of a clip."""
        places = np.arange(self.caption_ends_P1[clip], self.caption_ends_P1[clip + 1])
        return [self.captions[n] for n in self.caption_numbers(places).tolist()]

    def caption_numbers(self, places: np.ndarray) -> np.ndarray:
        """Numbers in `captions` of what stands at these places among all clips' captions."""
        return places if self.caption_numbers_Q is None else self.caption_numbers_Q[places]

    def save(self, path: Path) -> None:
        """Write the columns to a safetensors file.

        Args:
            path: Where to.

        Raises:
            MusiccmError: The disk is full or not writable.
        """
        columns = {
            "clip_id.data": self.clip_ids.data_X, "clip_id.ends": self.clip_ids.ends_N1,
            "caption.data": self.captions.data_X, "caption.ends": self.captions.ends_N1,
            "clip.caption_ends": self.caption_ends_P1, "clip.window_ends": self.window_ends_P1,
            "window.start": self.starts_N,
            **({} if self.caption_numbers_Q is None else {"clip.caption": self.caption_numbers_Q}),
        }
        tensors = {name: torch.from_numpy(np.array(column)) for name, column in columns.items()}
        metadata = {"numbered": str(int(self.numbered))}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> WindowIndex:
        """Map the columns of a file that `save` wrote.

        Args:
            path: The file.

        Raises:
            MusiccmError: It is missing or damaged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                numbered = (file.metadata() or {})["numbered"] == "1"
                column = {name: file.get_tensor(name).numpy() for name in file.keys()}
            return cls(
                StringColumn(column["clip_id.data"], column["clip_id.ends"]),
                StringColumn(column["caption.data"], column["caption.ends"]),
                column["clip.caption_ends"], column["clip.window_ends"], column["window.start"], numbered,
                column.get("clip.caption"),
            )
        except (OSError, SafetensorError, KeyError) as error:
            raise MusiccmError(f"{path}: not the index of a latent cache ({error!r}); remove the folder and run "
                               "`musiccm prepare latents` again") from error


def window_starts(clip: Clip, clip_samples: int, sample_rate_hz: int, windows_per_track: int) -> list[int]:
    """First samples of a clip's windows, see `WindowIndex.plan`."""
    total = resampled_length(clip.audio, sample_rate_hz)
    if windows_per_track == 1:
        return [centred_start(total, clip_samples)]
    room = max(0, total - clip_samples)
    return sorted({round(room * n / (windows_per_track - 1)) for n in range(windows_per_track)})
