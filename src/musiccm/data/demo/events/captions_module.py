"""Captions of the world of events with what they say, for training a text encoder: no sound is needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from musiccm.data.batch import Batch
from musiccm.data.demo.events.tracks import scene_of
from musiccm.data.demo.events.wording import CAPTIONS, Sentence, sentence
from musiccm.data.demo.events.world import BPM_RANGE, DRUMS, FORMS, INSTRUMENTS, KINDS, MOST_STROKES, Event, Scene
from musiccm.data.demo.world import TEMPO_CLASSES
from musiccm.data.sampling import KeyedLoader, OrderedSampler, ShuffledSampler
from musiccm.errors import MusiccmError

#: Events that a caption tells at most.
PLACES = 3
_SOUNDS = ("none", *INSTRUMENTS, *(f"{style} drums" for style in DRUMS), "drums")
#: What a caption says, by slot: the values that it can take. Places are those of the form, not of the sentence.
SLOTS: dict[str, tuple[str, ...]] = {
    "form": tuple(FORMS),
    **{f"sound_{place + 1}": _SOUNDS for place in range(PLACES)},
    **{f"kind_{place + 1}": ("none", *KINDS) for place in range(PLACES)},
    "count": tuple(str(number) for number in range(MOST_STROKES + 1)),
    "tempo": ("unsaid", *TEMPO_CLASSES),
    "bpm": ("unsaid", *(str(bpm) for bpm in range(BPM_RANGE[0], BPM_RANGE[1] + 1))),
}
#: The slot whose values are numbers behind the first: near ones are nearly right.
NUMBERS = "bpm"


@dataclass
class CaptionBatch(Batch):
    """Captions and what they say.

    Args:
        captions: The sentences.
        said_BK: The place of each slot's value among its values, in the order of `SLOTS`, [B, K].
        ids: Which clip of which split each is of.
    """

    captions: list[str]
    said_BK: Tensor
    ids: list[str]


def said(scene: Scene, told: Sentence) -> list[int]:
    """What a caption says, slot by slot, as places among the values of `SLOTS`."""
    nothing = Event("none", "none")
    events = [*scene.events, *[nothing] * (PLACES - len(scene.events))]
    values = {
        "form": scene.form,
        **{f"sound_{place + 1}": "drums" if event.kind == "drums" and not told.styled else event.name
           for place, event in enumerate(events)},
        **{f"kind_{place + 1}": event.kind for place, event in enumerate(events)},
        "count": str(scene.count),
        "tempo": told.tempo or "unsaid",
        "bpm": "unsaid" if told.bpm is None else str(told.bpm),
    }
    return [SLOTS[slot].index(value) for slot, value in values.items()]


#: A caption, what it says, and whose it is.
Item = tuple[str, list[int], str]


class CaptionPairs(Dataset):
    """A caption of each of two neighbouring clips, with what they say: of twins, the same words in another order.

    Side by side in a batch, all that their words have in common cancels out, and the order is what is learned.

    Args:
        split: Whose sentences.
        count: How many clips, from the first on, two an item.
        seed: Of the corpus.
        first: Take each clip's first caption, which says the most; else the epoch decides which.
    """

    def __init__(self, split: str, count: int, seed: int, first: bool) -> None:
        self.split, self.count, self.seed, self.first = split, count, seed, first

    def __len__(self) -> int:
        return self.count // 2

    def __getitem__(self, item: int | tuple[int, int]) -> list[Item]:
        """Both captions of an item, or of `(epoch, item)`."""
        epoch, pair = item if isinstance(item, tuple) else (0, item)
        number = 0 if self.first else (epoch + pair) % CAPTIONS
        return [self._caption(2 * pair, number), self._caption(2 * pair + 1, number)]

    def _caption(self, index: int, number: int) -> Item:
        scene, twin = scene_of(self.seed, self.split, index)
        told = sentence(scene, self.seed, self.split, index if twin is None else min(index, twin), number)
        return told.text, said(scene, told), f"{self.split}_{index:06d}"


def collate_captions(pairs: list[list[Item]]) -> CaptionBatch:
    """Items of `CaptionPairs` as a batch."""
    texts, said_BK, ids = zip(*(item for pair in pairs for item in pair), strict=True)
    return CaptionBatch(list(texts), torch.tensor(said_BK), list(ids))


class CaptionModule(pl.LightningDataModule):
    """Captions of a demo corpus of events, from its seed alone: training sentences, and held-out ones of validation.

    Args:
        seed: Of the corpus, and of the order.
        tracks: Training clips whose captions are drawn, an even number; an epoch reads one of each.
        val_tracks: Clips of the validation split, read by their first captions.
        batch_size: Captions in a training batch, an even number, for twins come together.
        eval_batch_size: Captions in a validation batch, likewise.
        num_workers: Loader processes; 0 words captions in the main process.
    """

    def __init__(
        self, seed: int = 0, tracks: int = 50_000, val_tracks: int = 1000, batch_size: int = 64,
        eval_batch_size: int = 250, num_workers: int = 0,
    ) -> None:
        super().__init__()
        least = {"tracks": tracks, "val_tracks": val_tracks, "batch_size": batch_size,
                 "eval_batch_size": eval_batch_size}
        for name, value in least.items():
            if value < 2 or value % 2:
                raise MusiccmError(f"data.{name} must be an even number, as captions come in pairs; found {value}")
        if num_workers < 0:
            raise MusiccmError(f"data.num_workers must be at least 0, found {num_workers}")
        self.seed, self.tracks, self.val_tracks = seed, tracks, val_tracks
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers

    @property
    def slots(self) -> dict[str, tuple[str, ...]]:
        """What captions say: `SLOTS`."""
        return SLOTS

    @property
    def numbers(self) -> str:
        """The slot whose values are numbers behind the first, which stands for none."""
        return NUMBERS

    def texts(self, count: int) -> list[str]:
        """The first training captions, one a clip: what a tokenizer is made from."""
        dataset = CaptionPairs("train", min(count, self.tracks), self.seed, first=False)
        return [text for pair in range(len(dataset)) for text, _, _ in dataset[pair]]

    def train_dataloader(self) -> KeyedLoader:
        """Shuffled training captions."""
        dataset = CaptionPairs("train", self.tracks, self.seed, first=False)
        order = ShuffledSampler(len(dataset), self.batch_size // 2, self.seed)
        return self._loader(dataset, order, self.batch_size, drop_last=True)

    def val_dataloader(self) -> KeyedLoader:
        """Held-out captions, in order."""
        dataset = CaptionPairs("validation", self.val_tracks, self.seed, first=True)
        return self._loader(dataset, OrderedSampler(len(dataset)), self.eval_batch_size)

    def _loader(self, dataset: CaptionPairs, sampler: Any, batch_size: int, drop_last: bool = False) -> KeyedLoader:
        return KeyedLoader(
            dataset, batch_size=batch_size // 2, sampler=sampler, collate_fn=collate_captions, drop_last=drop_last,
            num_workers=self.num_workers, persistent_workers=self.num_workers > 0,
        )
