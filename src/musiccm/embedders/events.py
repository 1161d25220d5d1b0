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
from musiccm.models.tagger import Tagger

#: Where the sections of a clip of so many are read, in shares of its length: borders lie on beats, near equal parts.
WINDOWS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.01, 0.99),),
    2: ((0.01, 0.42), (0.58, 0.99)),
    3: ((0.01, 0.27), (0.40, 0.60), (0.74, 0.99)),
}
_PLACES = [(sections, place) for sections, windows in WINDOWS.items() for place in range(len(windows))]
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

    A row of features is the tagger's embedding of both halves, end to end: unlike the tagger's own, it knows the order.
    In place of logits it gives what was read, one column each: instrument and drums of every window, the times of
    onsets, the tempo (librosa's, of the extra `eval`).

    Args:
        tagger: A tagger with groups `instrument` and `drums`.
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
        self._columns: dict[str, list[int]] = {}
        self._values: dict[str, list[str]] = {}
        for group in ("instrument", "drums"):
            if group not in tagger.groups:
                raise MusiccmError(f"embedder events: expected a tagger with a group '{group}', found "
                                   f"{', '.join(tagger.groups) or 'none'}")
            self._columns[group] = list(tagger.groups[group])
            self._values[group] = [tagger.tags[column].split(":", 1)[1] for column in self._columns[group]]
        self.tags = [f"{group} {place + 1}/{sections}" for sections, place in _PLACES for group in self._columns]
        one = len(self._columns)
        self.tags += [f"onset {number}" for number in range(MOST_ONSETS)] + ["bpm"]
        onsets = range(len(_PLACES) * one, len(_PLACES) * one + MOST_ONSETS)
        self.groups: dict[str, Reading] = {
            "heard": Same(tuple(range(one))),
            "order": Same(tuple(range(one, len(_PLACES) * one))),
            "count": Count(tuple(onsets)),
            "tempo_bpm": Tempo((len(self.tags) - 1,)),
        }
        self.freeze(tagger, mel=vars(mel), tagger=vars(tagger.config), windows=list(WINDOWS.items()),
                    onsets=[ONSET_RISE, RISE_FRAMES, APART_S, MOST_ONSETS], tempo_hop=TEMPO_HOP)

    def embed(self, waveform_BS: Tensor) -> Embeddings:
        """One row a clip, and what was read of it."""
        mel_BMN = self.log_mel(waveform_BS)
        rows, read = [], []
        for sections, windows in WINDOWS.items():
            for start, end in windows:
                frames = slice(round(start * mel_BMN.shape[1]), round(end * mel_BMN.shape[1]))
                embedding_BD, logits_BG = self.network(mel_BMN[:, frames])
                if sections == 2:
                    rows.append(embedding_BD)
                read += [logits_BG[:, columns].argmax(dim=1).float() for columns in self._columns.values()]
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
            whole = stated.get("heard") if stated.get("form") in ("alone", "together") else None
            if told := stated.get("order", whole):
                sections = told.split(" > ")
                for place, names in enumerate(sections):
                    first = len(self._columns) * _PLACES.index((len(sections), place))
                    for number, value in self._section(names.split(" + ")).items():
                        row_G[first + number] = value
            if "count" in stated:
                start_s, end_s = map(float, stated["strokes_s"].split())
                columns = self.groups["count"].columns
                row_G[list(columns[:3])] = torch.tensor([float(stated["count"]), max(0.0, start_s - GUARD_S),
                                                         end_s - GUARD_S])
            if "tempo_bpm" in stated:
                row_G[self.groups["tempo_bpm"].columns[0]] = float(stated["tempo_bpm"])
        return asked_BG

    def _section(self, names: Sequence[str]) -> dict[int, int]:
        """Places of the instrument and the drums of a section among the tagger's; of drums alone no instrument."""
        drums = [name.removesuffix(" drums") for name in names if name.endswith(" drums")]
        instruments = [name for name in names if not name.endswith(" drums")]
        found = {1: self._values["drums"].index(drums[0] if drums else "none")}
        return found | ({0: self._values["instrument"].index(instruments[0])} if instruments else {})


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
        import librosa
    except ImportError as error:
        raise missing_extra(error, "eval", "the embedder 'events'") or error from error
    strength = librosa.onset.onset_strength(y=waveform_S, sr=sample_rate_hz, hop_length=TEMPO_HOP, n_fft=1024)
    found = librosa.feature.tempo(onset_envelope=strength, sr=sample_rate_hz, hop_length=TEMPO_HOP)
    return float(np.atleast_1d(found)[0])
