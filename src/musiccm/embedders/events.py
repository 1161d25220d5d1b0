"""Order, counts and tempi from the sound of a clip: a tagger of windows, a rule for onsets, a beat tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from musiccm.audio.mel import LogMel, MelConfig
from musiccm.embedders.base import Embeddings
from musiccm.embedders.frozen import FrozenEmbedder
from musiccm.errors import MusiccmError, missing_extra
from musiccm.metrics.readings import NOTHING, Count, Reading, Same, Tempo
from musiccm.models.sections import (
    GROUPS,
    PLACES,
    SILENCE,
    WINDOW_FRAMES,
    WINDOWS,
    section_window,
    told_sections,
    told_values,
    values_of,
)
from musiccm.models.tagger import Tagger

#: Onsets that are told apart at most.
MOST_ONSETS = 32
#: Rise of the log mel within `RISE_FRAMES`, averaged over bins, that begins a note; and how far two lie apart.
ONSET_RISE = 0.35
RISE_FRAMES = 4
APART_S = 0.25
#: Before a section's end, where the next one may begin early; strokes end sooner.
GUARD_S = 0.15
TEMPO_HOP = 256


class EventsEmbedder(FrozenEmbedder):
    """Reads what the world of events asks for, section by section.

    A row of features is the embedding of both halves, end to end: unlike that of a whole clip, it knows the order.
    In place of logits it gives what was read, one column each: instrument and drums of every window, the times of
    onsets, the tempo (librosa's, of the extra `eval`).

    Args:
        tagger: A tagger of sections, with groups `instrument` and `drums` (`stages/sections.py`).
        mel: The front end that it was trained on.

    Attributes:
        groups: What is compared, see `metrics.readings`; `asked` says what was asked for in the same columns.

    Raises:
        MusiccmError: The tagger lacks a group.
    """

    #: Its columns are no classes: metrics of classifiers are not taken from it.
    classifies = False

    def __init__(self, tagger: Tagger, mel: MelConfig) -> None:
        super().__init__("events", mel.sample_rate_hz, mel.sample_rate_hz)
        self.network, self.log_mel = tagger.float(), LogMel(mel)
        self._values = values_of(tagger)
        if lacking := [group for group in GROUPS if group not in self._values]:
            raise MusiccmError(f"embedder events: expected a tagger with a group '{lacking[0]}', found "
                               f"{', '.join(tagger.groups) or 'none'}")
        self.tags = [f"{group} {place + 1}/{sections}" for sections, place in PLACES for group in GROUPS]
        read = len(self.tags)
        self.tags += [f"onset {number}" for number in range(MOST_ONSETS)] + ["bpm"]
        onsets = range(read, read + MOST_ONSETS)
        self.groups: dict[str, Reading] = {
            "sounds": Same(tuple(range(len(GROUPS)))),
            "order": Same(tuple(range(len(GROUPS), read))),
            "count": Count(tuple(onsets)),
            "tempo_bpm": Tempo((len(self.tags) - 1,)),
        }
        self.freeze(tagger, mel=vars(mel), tagger=vars(tagger.config), windows=[WINDOWS, WINDOW_FRAMES, SILENCE],
                    onsets=[ONSET_RISE, RISE_FRAMES, APART_S, MOST_ONSETS], tempo_hop=TEMPO_HOP)

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """One row a clip, and what was read of it."""
        mel_BMN = self.log_mel(waveform_BS)
        rows, read = [], []
        for sections, place in PLACES:
            embedding_BD, logits_BG = self.network(section_window(mel_BMN, sections, place))
            if sections == 2:
                rows.append(embedding_BD)
            read += [logits_BG[:, self.network.groups[group]].argmax(dim=1).float() for group in GROUPS]
        hop_s = self.log_mel.config.hop_length / self.sample_rate_hz
        onsets_BK = torch.full((len(waveform_BS), MOST_ONSETS), NOTHING)
        tempi_B = torch.zeros(len(waveform_BS))
        for clip, mel_MN in enumerate(mel_BMN.cpu().numpy()):
            times_s = onset_times(mel_MN, hop_s)[:MOST_ONSETS]
            onsets_BK[clip, :len(times_s)] = torch.from_numpy(times_s).float()
            tempi_B[clip] = tempo_of(waveform_BS[clip].cpu().numpy(), self.sample_rate_hz)
        read_BG = torch.cat([torch.stack(read, dim=1).cpu(), onsets_BK, tempi_B[:, None]], dim=1)
        return Embeddings(torch.cat(rows, dim=1), [1] * len(waveform_BS), read_BG.to(mel_BMN.device))

    def asked(self, attributes: Sequence[Mapping[str, str]]) -> Tensor:
        """What clips ask for, in the columns of what is read; `NOTHING` where nothing is asked.

        Args:
            attributes: The labels of the clips (`Scene.labels`).

        Returns:
            Numbers, `[B, G]`, on the CPU.
        """
        asked_BG = torch.full((len(attributes), len(self.tags)), NOTHING)
        for row_G, stated in zip(asked_BG, attributes, strict=True):
            sections = told_sections(stated) or []
            for place, section in enumerate(sections):
                first = len(GROUPS) * PLACES.index((len(sections), place))
                row_G[first: first + len(GROUPS)] = torch.tensor(told_values(section, self._values)).float()
            if "count" in stated:
                start_s, end_s = map(float, stated["strokes_s"].split())
                columns = self.groups["count"].columns
                row_G[list(columns[:3])] = torch.tensor([float(stated["count"]), max(0.0, start_s - GUARD_S),
                                                         end_s - GUARD_S])
            if "tempo_bpm" in stated:
                row_G[self.groups["tempo_bpm"].columns[0]] = float(stated["tempo_bpm"])
        return asked_BG


def onset_times(mel_MN: np.ndarray, hop_s: float) -> np.ndarray:
    """When notes begin: where the log mel rises, in many bins at once.

    Args:
        mel_MN: Natural-log mel.
        hop_s: Seconds from frame to frame.

    Returns:
        Seconds, ascending.
    """
    padded_MN = np.concatenate([np.repeat(mel_MN[:1], RISE_FRAMES, axis=0), mel_MN])
    # What lies far below the clip's peak is the room, in which nothing begins.
    padded_MN = np.maximum(padded_MN, mel_MN.max() - 7.0)
    rise_M = np.maximum(padded_MN[RISE_FRAMES:] - padded_MN[:-RISE_FRAMES], 0).mean(axis=1)
    apart = max(1, round(APART_S / hop_s))
    found: list[int] = []
    for frame in np.argsort(-rise_M):
        if rise_M[frame] < ONSET_RISE:
            break
        if all(abs(frame - other) >= apart for other in found):
            found.append(int(frame))
    return np.sort(np.asarray(found, np.float64)) * hop_s


def tempo_of(waveform_S: np.ndarray, sample_rate_hz: int) -> float:
    """Beats a minute by librosa's tempogram, which knows nothing of how clips are made.

    Raises:
        MusiccmError: librosa is not installed.
    """
    try:
        from librosa.feature import tempo
        from librosa.onset import onset_strength
    except ImportError as error:
        raise missing_extra(error, "eval", "the embedder 'events'") or error from error
    strength = onset_strength(y=waveform_S, sr=sample_rate_hz, hop_length=TEMPO_HOP, n_fft=1024)
    found = tempo(onset_envelope=strength, sr=sample_rate_hz, hop_length=TEMPO_HOP)
    return float(np.atleast_1d(found)[0])
