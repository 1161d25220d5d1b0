"""Two folders of audio in, figures out: the work of `musiccm evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.data.audio_folder import (
    AudioFolder,
    FolderClip,
    captions_of,
    clip_batches,
    read_audio_folder,
    read_captions,
)
from musiccm.data.names import pair_names
from musiccm.device import choose_device
from musiccm.embedders import Embedder, load_embedder
from musiccm.embedders.clap import ClapEmbedder
from musiccm.errors import MusiccmError
from musiccm.evaluation.feature_extraction import FeatureExtractor
from musiccm.evaluation.folder_notes import notes
from musiccm.evaluation.reference import FeatureSet, reference_figures
from musiccm.evaluation.suite import MetricSuite
from musiccm.metrics.text_audio import TextAudioSimilarity
from musiccm.models.bundle import Bundle
from musiccm.progress import Progress
from musiccm.similarity.check import index_clap
from musiccm.similarity.clap_windows import CONDITIONER_PARTS, ClapWindows
from musiccm.similarity.folder_features import embed_folder
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.nearest import Queries, nearest_clips
from musiccm.similarity.sim_aa import rates
from musiccm.texts import escaped

log = logging.getLogger(__name__)

SCHEMA = 1
#: What the field's tables are made with.
DEFAULT_EMBEDDERS = ("pann", "vgg")


@dataclass
class Task:
    """What to score, and how; see `musiccm evaluate --help`."""

    generated: Path
    reference: Path
    embedders: dict[str, str | None] = field(default_factory=dict)
    bundle: str | None = None
    captions: str | None = None
    train: str | None = None
    clap: str | None = None
    duration_s: float | None = None
    channel: str = "mean"
    batch_size: int = 16
    device: str = "auto"
    also: Sequence[str] = ()
    reference_implementation: bool = False


def pairs_of(arguments: Sequence[str] | None) -> dict[str, str | None]:
    """`NAME[=FILE]` arguments as a mapping; the default networks without any."""
    named: dict[str, str | None] = {}
    for argument in arguments or DEFAULT_EMBEDDERS:
        name, _, path = argument.partition("=")
        if name in named:
            raise MusiccmError(f"--embedder {argument}: {name} is given twice")
        named[name] = path or None
    return named


def evaluate(task: Task) -> dict[str, Any]:
    """Score one folder against another.

    Args:
        task: What and how.

    Returns:
        What `report` prints and the JSON holds: `figures` by name, `reference_implementation` where asked for,
        `references` (figures of the real clips), numbers of clips, files left out and why, notes, networks.

    Raises:
        MusiccmError: A folder, file of weights or option that cannot be used, named.
    """
    if task.batch_size < 1:
        raise MusiccmError(f"--batch-size: expected at least 1, found {task.batch_size}")
    device = torch.device(choose_device(task.device))
    index = None if task.train is None else opened_index(task)
    captions = None if task.captions is None else read_captions(task.captions)
    embedders = [load_embedder(name, path, task.bundle, device) for name, path in task.embedders.items()]
    clap = None
    if captions is not None:
        heard = [embedder for embedder in embedders if isinstance(embedder, ClapEmbedder) and task.clap is None]
        clap = heard[0] if heard else load_embedder("clap", task.clap, task.bundle, device)
    shortest = max(embedder.min_duration_s for embedder in [*embedders, *([clap] if clap else [])])
    if task.duration_s is not None and not task.duration_s >= shortest:
        raise MusiccmError(f"--seconds: expected at least the {shortest:g} s that the networks hear, found "
                           f"{task.duration_s:g}")
    folders = {side: read_audio_folder(path, shortest, task.channel, progress=True)
               for side, path in (("generated", task.generated), ("reference", task.reference))}
    for folder in folders.values():
        if len(folder.clips) < 2:
            raise MusiccmError(f"{folder}: expected at least 2 clips, of which a distance can be taken")
    run = _Run(task, embedders, clap, folders, captions, device)
    run.hear_all()
    result = run.result()
    return result if index is None else with_sim_aa(result, task, *index)


def opened_index(task: Task) -> tuple[TrainingIndex, ClapWindows]:
    """The index of `--train` and a CLAP that hears as the index was heard.

    Raises:
        MusiccmError: The index cannot be used, or was built with another CLAP.
    """
    index = TrainingIndex(str(task.train))
    bundle = Bundle.from_pretrained(task.bundle or index.about["bundle"], parts=CONDITIONER_PARTS)
    return index, index_clap(index, bundle, choose_device(task.device), task.batch_size, workers=2)


def with_sim_aa(result: dict[str, Any], task: Task, index: TrainingIndex, ear: ClapWindows) -> dict[str, Any]:
    """Add the plagiarism check's rates, which are of whole files: CLAP hears windows as the index was heard.

    Args:
        result: What `evaluate` found.
        task: With the folders.
        index: The training clips.
        ear: What hears.

    Returns:
        The result with `sim_aa_90`, `sim_aa_95` of both sides, the clips behind them, and the nearest training clip of
        each generated one.
    """
    for side, folder in (("generated", task.generated), ("reference", task.reference)):
        heard = embed_folder(ear, folder)
        known = {item["path"] for item in result["left_out"][side]}
        result["left_out"][side] += [vars(item) for item in heard.left_out if item.path not in known]
        found = nearest_clips(index, Queries(heard.rows, [len(starts) for starts in heard.starts_s]), 1)
        maxima = found.cosine_QK[:, 0]
        if side == "reference":
            result["references"] |= {f"test_set_{key}": value for key, value in rates(maxima).items()}
            result["references"]["n_test_set_sim_aa"] = len(heard.ids)
            continue
        result["figures"] |= rates(maxima) | {"n_sim_aa": len(heard.ids)}
        if task.duration_s is not None or task.channel != "mean":
            result["notes"].append("SIM_AA hears whole files and the mean of their channels")
        nearest = zip(heard.names, found.clip_QK[:, 0].tolist(), maxima.tolist(), strict=True)
        result["nearest"] = [{"clip": name, "nearest": index.ids[clip], "cosine": cosine}
                             for name, clip, cosine in sorted(nearest, key=lambda match: (-match[2], match[0]))]
    return result


class _Run:
    """One evaluation: the folders are heard once, the reference first."""

    def __init__(
        self,
        task: Task,
        embedders: Sequence[Embedder],
        clap: Any,
        folders: dict[str, AudioFolder],
        captions: dict[str, str] | None,
        device: torch.device,
    ) -> None:
        self.task, self.folders, self.device, self.clap = task, folders, device, clap
        rate_hz = next(iter(folders["generated"].rates_hz))
        self.extractor = FeatureExtractor(embedders, None, rate_hz).to(device)
        self.classifies = self.extractor.classifies(device)
        kad, fd_inf = (list(self.classifies) if name in task.also else [] for name in ("kad", "fd_inf"))
        self.suite = MetricSuite(self.classifies, text=False, kad=kad, fd_inf=fd_inf).to(device)
        self.kept = {side: {name: FeatureSet() for name in self.classifies} for side in folders}
        self.paired, self.ambiguous = pair_folders(folders)
        self.text = None
        if captions is not None:
            names = {side: [clip.id for clip in folder.clips] for side, folder in folders.items()}
            self.text = TextSimilarity(clap, chosen_captions(str(task.captions), captions, names))

    def hear_all(self) -> None:
        """Hear the reference, then the generated clips."""
        for side in ("reference", "generated"):
            clips = self.folders[side].clips
            with Progress(len(clips), f"hearing {side}", "clip") as bar:
                for paired in (True, False):
                    self._hear([clip for clip in clips if (clip.id in self.paired) == paired], side, paired, bar)

    @torch.no_grad()
    def _hear(self, clips: Sequence[FolderClip], side: str, paired: bool, bar: Progress) -> None:
        task = self.task
        for batch in clip_batches(clips, task.batch_size, task.duration_s, task.channel):
            waveform_BS = batch.waveform_BS.to(self.device)
            features = self.extractor(waveform_BS, batch.sample_rate_hz)
            if side == "reference":
                self.suite.update_reference(features, None, batch.ids, paired=paired)
            else:
                self.suite.update(features, None, batch.ids, paired=paired)
            if self.text is not None:
                heard = features.embeddings[self.clap.name] if self.clap in self.extractor.embedders.values() else (
                    self.clap(waveform_BS, batch.sample_rate_hz))
                self.text.update(side, heard.embedding_RE.cpu(), batch.ids)
            if task.reference_implementation:
                for name, heard in features.embeddings.items():
                    self.kept[side][name].add(batch.ids, heard)
            bar.update(len(batch.ids))

    def result(self) -> dict[str, Any]:
        """Figures and everything that a reader needs to trust them."""
        figures, _ = self.suite.compute()
        figures = {key: value for key, value in figures.items() if key not in ("n", "n_reference")
                   and not key.startswith(("sim_aa", "ta_sim"))}
        references: dict[str, Any] = {}
        if self.text is not None:
            found, references = self.text.compute()
            figures |= found
        result: dict[str, Any] = {
            "schema": SCHEMA, "generated": escaped(self.task.generated), "reference": escaped(self.task.reference),
            "n": len(self.folders["generated"].clips), "n_reference": len(self.folders["reference"].clips),
            "n_pairs": len(self.paired), "figures": figures, "references": references,
        }
        if self.task.reference_implementation:
            result["reference_implementation"] = self._second_column()
        names = [*self.extractor.embedders.values(), *([self.clap] if self.clap is not None else [])]
        return result | {
            "networks": {network.name: network.fingerprint for network in names},
            "settings": {"seconds": self.task.duration_s, "channel": self.task.channel, "bundle": self.task.bundle},
            "left_out": {side: [vars(item) for item in (*folder.left_out, *folder.others)]
                         for side, folder in self.folders.items()},
            "unpaired": {side: sorted({clip.id for clip in folder.clips} - self.paired)
                         for side, folder in self.folders.items()},
            "notes": notes(self.folders, self.paired, self.task.duration_s, self.ambiguous),
        }

    def _second_column(self) -> dict[str, float]:
        column: dict[str, float] = {}
        for name in self.classifies:
            found = reference_figures(self.kept["generated"][name], self.kept["reference"][name])
            column |= {{"fd": f"fd_{name}", "kl": f"kl_{name}"}.get(key, f"is_{name}_{key[3:]}"): value
                       for key, value in found.items()}
        return column


def pair_folders(folders: dict[str, AudioFolder]) -> tuple[set[str], list[str]]:
    """Pair generated clips and references by their names, in whichever Unicode form each is spelled.

    Args:
        folders: `generated` and `reference`; a reference that is paired takes the generated clip's id.

    Returns:
        The ids of the pairs, and the generated clips whose partner is not clear.
    """
    found = pair_names(*([clip.id for clip in folders[side].clips] for side in ("generated", "reference")))
    renamed = {other: name for name, other in found.pairs.items()}
    reference = folders["reference"]
    reference.clips = [replace(clip, id=renamed.get(clip.id, clip.id)) for clip in reference.clips]
    return set(found.pairs), found.ambiguous


def chosen_captions(path: str, captions: dict[str, str], names: dict[str, list[str]]) -> dict[str, str]:
    """Captions by clip id; every generated clip needs one.

    Args:
        path: Where the captions come from, for messages.
        captions: From `read_captions`.
        names: Ids of the `generated` and the `reference` clips.

    Raises:
        MusiccmError: A generated clip has none, or it is not clear which.
    """
    own, found = captions_of(names["generated"], captions)
    if found.ambiguous:
        raise MusiccmError(f"{path}: {found.ambiguous[0]}: several captions or clips have this name in different "
                           "Unicode forms; give each caption the exact name of its clip")
    if missing := sorted(set(names["generated"]) - set(own)):
        raise MusiccmError(f"{path}: no caption for {len(missing)} of {len(names['generated'])} generated clips, first "
                           f"{missing[0]}; expected one for each, under its path without the suffix")
    return captions_of(names["reference"], captions)[0] | own


class TextSimilarity:
    """Text-audio similarity of both sides, and the best that retrieval among the references could do.

    Args:
        clap: The CLAP embedder, with `text`.
        captions: Captions by clip id.
    """

    def __init__(self, clap: Any, captions: dict[str, str]) -> None:
        self.clap, self.captions = clap, captions
        self.similarity = {"generated": TextAudioSimilarity(), "reference": TextAudioSimilarity()}
        self.gallery: list[Tensor] = []

    def update(self, side: str, audio_BD: Tensor, ids: Sequence[str]) -> None:
        """Add clips; references without a caption stand for themselves in the gallery alone."""
        if side == "reference":
            self.gallery.append(audio_BD)
        asked = [n for n, clip_id in enumerate(ids) if clip_id in self.captions]
        if asked:
            text_BD = self.clap.text([self.captions[ids[n]] for n in asked]).cpu()
            self.similarity[side].update(text_BD, audio_BD[asked], [ids[n] for n in asked])

    def compute(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """`ta_similarity` of the generated clips, and the two figures that put it in proportion."""
        found = self.similarity["generated"].compute()
        best = self.similarity["generated"].retrieval_max(torch.cat(self.gallery))
        references = {"retrieval_max_ta": best["retrieval_max_ta"], "retrieval_max_gallery": "reference",
                      "n_retrieval_max_gallery": best["n_gallery"]}
        if self.similarity["reference"].joined("text").numel():
            real = self.similarity["reference"].compute()
            references |= {"test_set_ta": real["ta_similarity"], "n_test_set_ta": real["n"]}
        return {"ta_similarity": found["ta_similarity"]}, references
