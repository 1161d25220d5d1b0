"""Two sets of audio in, metrics out: the work of `musiccm.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from musiccm.data.audio_folder import AudioFolder, FolderClip, Preparation, captions_of, clip_batches
from musiccm.data.names import pair_names
from musiccm.embedders import Embedder
from musiccm.errors import MusiccmError
from musiccm.evaluation.feature_extraction import FeatureExtractor
from musiccm.evaluation.folder_notes import notes
from musiccm.evaluation.reference import FeatureSet, reference_metrics
from musiccm.evaluation.registry import find, metric_row
from musiccm.evaluation.suite import REAL, TEXT, MetricSuite
from musiccm.metrics.real_audio import RealAudioSimilarity
from musiccm.metrics.text_audio import TextAudioSimilarity
from musiccm.progress import Progress
from musiccm.similarity.clap_windows import ClapWindows
from musiccm.similarity.folder_features import WindowCollector
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.nearest import Queries, nearest_clips
from musiccm.similarity.sim_aa import rates
from musiccm.texts import escaped

SCHEMA = 1


class FolderRun:
    """One evaluation: each file is decoded once for all metrics, the references first.

    Args:
        folders: `generated` and `reference`, scanned.
        metrics: Names of the metrics that each network gives.
        embedders: The networks.
        device: Where they are.
        clap: For similarity with captions and with real clips; None for neither.
        captions: By clip id.
        train: Training clips and their CLAP, for SIM_AA.
        seconds: Take this much from the start of every file.
        channel: `mean` or `first`.
        batch_size: Clips embedded together.
        reference_implementation: Whether to add what audioldm_eval makes of the embeddings.
        progress: Whether to show progress bars.
        captions_from: Where the captions come from, for messages.
        real_similarity: Whether the CLAP compares each clip with its reference.
        prepare: How clips are brought to one length, rate and level; None takes them as they are.

    Raises:
        MusiccmError: A metric that none of the networks can give, or a clip without a caption.
    """

    def __init__(
        self,
        folders: dict[str, AudioFolder],
        metrics: Sequence[str],
        embedders: Sequence[Embedder],
        device: torch.device,
        clap: Any = None,
        captions: Mapping[str, str] | None = None,
        train: tuple[TrainingIndex, ClapWindows] | None = None,
        seconds: float | None = None,
        channel: str = "mean",
        batch_size: int = 16,
        reference_implementation: bool = False,
        progress: bool = True,
        captions_from: str | None = None,
        real_similarity: bool = False,
        prepare: Preparation | None = None,
    ) -> None:
        self.folders, self.device, self.clap, self.prepare = folders, device, clap, prepare
        self.seconds, self.channel, self.batch_size, self.progress = seconds, channel, batch_size, progress
        rate_hz = next(iter(folders["generated"].rates_hz))
        self.extractor = FeatureExtractor(embedders, None, rate_hz).to(device)
        self.classifies = self.extractor.classifies(device)
        for name in metrics:
            if not any(self.classifies.values() if metric_row(name).needs == "logits" else self.classifies):
                raise MusiccmError(f"metrics: {name} needs {metric_row(name).needs}, which none of the embedders "
                                   f"{list(self.classifies)} gives")
        self.suite = MetricSuite(self.classifies, text=False, always=metrics).to(device)
        self.kept = {side: {name: FeatureSet() for name in self.classifies} for side in folders}
        self.reference_implementation = reference_implementation
        self.index = None if train is None else train[0]
        self.windows = {} if train is None else {
            side: WindowCollector(train[1], folder.root, channel) for side, folder in folders.items()}
        self.paired, self.ambiguous = pair_folders(folders)
        self.real = RealAudioSimilarity() if real_similarity else None
        self.text = None
        if captions is not None:
            names = {side: [clip.id for clip in folder.clips] for side, folder in folders.items()}
            self.text = TextSimilarity(clap, chosen_captions(captions_from or "captions", captions, names))

    def hear_all(self) -> None:
        """Embed the reference, then the generated clips."""
        for side in ("reference", "generated"):
            clips = self.folders[side].clips
            with Progress(len(clips), f"embedding {side}", "clip", self.progress) as bar:
                for paired in (True, False):
                    self._embed([clip for clip in clips if (clip.id in self.paired) == paired], side, paired, bar)

    @torch.no_grad()
    def _embed(self, clips: Sequence[FolderClip], side: str, paired: bool, bar: Progress) -> None:
        whole = self.windows[side].add if self.windows else None
        for batch in clip_batches(clips, self.batch_size, self.seconds, self.channel, whole, self.prepare):
            waveform_BS = batch.waveform_BS.to(self.device)
            features = self.extractor(waveform_BS, batch.sample_rate_hz)
            if side == "reference":
                self.suite.update_reference(features, None, batch.ids, paired=paired)
            else:
                self.suite.update(features, None, batch.ids, paired=paired)
            if self.text is not None or self.real is not None:
                embedded = features.embeddings[self.clap.name] if self.clap in self.extractor.embedders.values() else (
                    self.clap(waveform_BS, batch.sample_rate_hz))
                audio_BD = embedded.embedding_RE.cpu()
                if self.text is not None:
                    self.text.update(side, audio_BD, batch.ids)
                if self.real is not None and paired:
                    self.real.update(audio_BD, batch.ids, real=side == "reference")
            if self.reference_implementation:
                for name, embedded in features.embeddings.items():
                    self.kept[side][name].add(batch.ids, embedded)
            bar.update(len(batch.ids))

    def result(self, bundle: str | None = None) -> dict[str, Any]:
        """The metrics and everything that a reader needs to trust them.

        Args:
            bundle: What is said of where networks come from.
        """
        metrics, _ = self.suite.compute()
        metrics = {key: value for key, value in metrics.items() if key not in ("n", "n_reference")
                   and not ((found := find(key)) and found.metric.scope in ("training", "text", "real"))}
        references: dict[str, Any] = {}
        if self.text is not None:
            similar, references = self.text.compute()
            metrics |= similar
        if self.real is not None:
            similar = self.real.compute() if self.paired else {}
            metrics |= {key: similar.get(key) for key in REAL}
        result: dict[str, Any] = {
            "schema": SCHEMA, **{side: escaped(folder.root) for side, folder in self.folders.items()},
            "n": len(self.folders["generated"].clips), "n_reference": len(self.folders["reference"].clips),
            "n_pairs": len(self.paired), "figures": metrics, "references": references,
        }
        if self.reference_implementation:
            result["reference_implementation"] = self._second_column()
        names = [*self.extractor.embedders.values(), *([self.clap] if self.clap is not None else [])]
        result |= {
            "networks": {network.name: network.fingerprint for network in names},
            "settings": {"seconds": self.seconds, "channel": self.channel, "bundle": bundle},
            "left_out": {side: [vars(item) for item in (*folder.left_out, *folder.others)]
                         for side, folder in self.folders.items()},
            "unpaired": {side: sorted({clip.id for clip in folder.clips} - self.paired)
                         for side, folder in self.folders.items()},
            "notes": notes(self.folders, self.paired, self.seconds, self.ambiguous, self.prepare is not None),
        }
        if self.index is not None:
            self._add_sim_aa(result, self.index)
        return result

    def _add_sim_aa(self, result: dict[str, Any], index: TrainingIndex) -> None:
        """The plagiarism check's rates, which are of whole files: CLAP embeds windows as the index was embedded."""
        for side in ("generated", "reference"):
            embedded = self.windows[side].finish()
            result["left_out"][side] += [vars(item) for item in embedded.left_out]
            found = nearest_clips(index, Queries(embedded.rows, [len(starts) for starts in embedded.starts_s]), 1)
            maxima = found.cosine_QK[:, 0]
            if side == "reference":
                result["references"] |= {f"test_set_{key}": value for key, value in rates(maxima).items()}
                result["references"]["n_test_set_sim_aa"] = len(embedded.ids)
                continue
            result["figures"] |= rates(maxima) | {"n_sim_aa": len(embedded.ids)}
            if self.seconds is not None or self.channel != "mean":
                result["notes"].append("SIM_AA takes whole files and the mean of their channels")
            nearest = zip(embedded.names, found.clip_QK[:, 0].tolist(), maxima.tolist(), strict=True)
            result["nearest"] = [{"clip": name, "nearest": index.ids[clip], "cosine": cosine}
                                 for name, clip, cosine in sorted(nearest, key=lambda match: (-match[2], match[0]))]

    def _second_column(self) -> dict[str, float]:
        column: dict[str, float] = {}
        for name in self.classifies:
            found = reference_metrics(self.kept["generated"][name], self.kept["reference"][name])
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


def chosen_captions(path: str, captions: Mapping[str, str], names: dict[str, list[str]]) -> dict[str, str]:
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
        """Similarity of the generated clips, and the two metrics that put it in proportion."""
        found = self.similarity["generated"].compute()
        best = self.similarity["generated"].retrieval_max(torch.cat(self.gallery))
        references = {"retrieval_max_ta": best["retrieval_max_ta"], "retrieval_max_gallery": "reference",
                      "n_retrieval_max_gallery": best["n_gallery"]}
        if self.similarity["reference"].joined("text").numel():
            real = self.similarity["reference"].compute()
            references |= {"test_set_ta": real["ta_similarity"], "test_set_clap_t": real["clap_t"],
                           "n_test_set_ta": real["n"]}
        return {key: found[key] for key in TEXT}, references
