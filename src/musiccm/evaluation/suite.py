"""All metrics over one set of features: every metric is taken from the same features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from musiccm.embedders.base import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation.feature_extraction import FeatureExtractor, Features, check_names
from musiccm.evaluation.network import NetworkMetrics
from musiccm.evaluation.registry import NETWORK_SCOPES, metrics_of
from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.metrics.clips import ClipCount, ClipMetric, TooFewClips
from musiccm.metrics.real_audio import RealAudioSimilarity
from musiccm.metrics.text_audio import TextAudioSimilarity
from musiccm.similarity.gallery import Gallery
from musiccm.similarity.sim_aa import SimAA

__all__ = ["Features", "FeatureExtractor", "MetricSuite"]

#: What SIM_AA compares with, see `MetricSuite`.
Train = tuple[Sequence[str], Tensor] | Mapping[str, Gallery] | Callable[[], ClipMetric] | None
SIM_AA = ("sim_aa_90", "sim_aa_95")
#: What the measuring CLAP gives: against the captions, and against the real clips.
TEXT, REAL = ("ta_similarity", "clap_t"), ("ra_similarity", "clap_a")


class MetricSuite(nn.Module):
    """All metrics behind one update; the reference is kept while models come and go.

    Args:
        embedders: Names of the networks, each with whether it classifies (`FeatureExtractor.classifies`).
        train: What SIM_AA compares with: ids and CLAP audio embeddings `[N, D]` of the training clips; galleries by the
            end of their metrics' names, `""` the first; or a function that makes a metric with SimAA's
            `update(audio, ids)`, `compute()` and `reset()`; None for no SIM_AA.
        groups: Attribute groups of the tagger, see `AttributeAccuracy`; `tagger` says whose outputs they are.
        text: Whether captions are known: without them there is no text-audio similarity.
        gallery_ND: CLAP audio embeddings that Retrieval Max chooses from; those of `train` where it holds them.
        tagger: The network whose outputs `groups` names: a classifier, or one that reads (`metrics.readings`).
        also: Networks that give a metric beside those that all give, by the metric's name in the registry.
        always: Metrics that all networks give; those of the registry that are not optional if None.
        options: Arguments of the networks' metrics, by the metric's name.

    Raises:
        MusiccmError: Groups of a network, or metrics asked of a network that is not among the embedders.
    """

    def __init__(
        self,
        embedders: Mapping[str, bool],
        train: Train = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        text: bool = True,
        gallery_ND: Tensor | None = None,
        tagger: str = "tagger",
        also: Mapping[str, Sequence[str]] | None = None,
        always: Collection[str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        asked = dict(also or {})
        known = {row.name for row in metrics_of(*NETWORK_SCOPES)}
        if always is None:
            always = {row.name for row in metrics_of(*NETWORK_SCOPES) if row.optional is None}
        if unknown := sorted({*asked, *always} - known):
            raise MusiccmError(f"metrics of networks: expected names among {sorted(known)}, found {unknown}")
        for metric, networks in asked.items():
            if unknown := sorted(set(networks) - set(embedders)):
                raise MusiccmError(f"{metric}: expected names among the embedders {list(embedders)}, found {unknown}")
        check_names(list(embedders))
        if groups and tagger not in embedders:
            raise MusiccmError(f"attribute groups: expected one of the embedders {list(embedders)}, found {tagger!r}")
        self.networks = nn.ModuleDict({
            name: NetworkMetrics(name, classifies, {*always, *(m for m in asked if name in asked[m])}, options)
            for name, classifies in embedders.items()
        })
        self.ta = TextAudioSimilarity() if text else None
        self.real_ta = TextAudioSimilarity() if text else None
        self.ra = RealAudioSimilarity(reset_real_features=False) if text else None
        #: Ends of the names of SIM_AA's metrics, one a gallery.
        self.columns = list(train) if isinstance(train, Mapping) else [] if train is None else [""]
        self.sim_aa, self.real_sim_aa = nn.ModuleList(_sim_aa(train)), nn.ModuleList(_sim_aa(train))
        self.gallery_ND = train[1] if gallery_ND is None and isinstance(train, tuple) else gallery_ND
        self.count = ClipCount()
        self.accuracy, self.tagger = AttributeAccuracy(groups) if groups else None, tagger
        self.real_accuracy = AttributeAccuracy(groups) if groups else None

    def update_reference(
        self, features: Features, text_BD: Tensor | None, ids: Sequence[str], paired: bool = True,
        targets_BG: Tensor | None = None,
    ) -> None:
        """Add real clips.

        Args:
            features: Features of a batch.
            text_BD: CLAP embeddings of their captions; None in a suite without text.
            ids: Clip ids.
            paired: False for clips that are known to have no generated partner, so that KL need not hold them.
            targets_BG: What is known of them, as the tagger's outputs.
        """
        for name, network in self.networks.items():
            network.update(features.embeddings[name], ids, real=True, paired=paired)
        self._update_clap(self.real_ta, self.real_sim_aa, features, text_BD, ids, real=True)
        logits = features.embeddings[self.tagger].logits_BG if self.real_accuracy is not None else None
        if self.real_accuracy is not None and logits is not None and targets_BG is not None:
            self.real_accuracy.update(logits, targets_BG, ids)

    def update(
        self,
        features: Features,
        text_BD: Tensor | None,
        ids: Sequence[str],
        targets_BG: Tensor | None = None,
        paired: bool = True,
    ) -> None:
        """Add generated clips.

        Args:
            features: Features of a batch.
            text_BD: CLAP embeddings of the captions that were asked for; None in a suite without text.
            ids: Clip ids.
            targets_BG: Tags asked for; needed where the suite has attribute groups.
            paired: Whether a reference clip of each id exists; KL is of those alone.

        Raises:
            MusiccmError: Groups, but no tags or no logits of the tagger.
        """
        self.count.update(ids)
        for name, network in self.networks.items():
            network.update(features.embeddings[name], ids, real=False, paired=paired)
        self._update_clap(self.ta, self.sim_aa, features, text_BD, ids, real=False)
        if self.accuracy is not None:
            logits = features.embeddings[self.tagger].logits_BG
            if targets_BG is None or logits is None:
                raise MusiccmError("attribute accuracy: expected logits and the tags that were asked for, found none")
            self.accuracy.update(logits, targets_BG, ids)

    def reset_generated(self) -> None:
        """Forget the generated clips, keep the reference."""
        for network in self.networks.values():
            network.reset()
        for metric in (self.count, self.ta, self.ra, *self.sim_aa, self.accuracy):
            if metric is not None:
                metric.reset()

    def compute(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The metrics of the generated clips.

        Returns:
            A row of metrics with its `n`, and for each clip its nearest training clip (empty without training
            embeddings). A metric that these clips cannot give is None.

        Raises:
            MusiccmError: No clip, or generated clips without a reference.
        """
        n = self.count.compute()
        if not n:
            raise MusiccmError("evaluation: expected generated clips, found none")
        row: dict[str, Any] = {}
        for network in self.networks.values():
            row |= network.compute(n)
        ta = dict.fromkeys(TEXT) if self.ta is None else self.ta.compute()
        ra = dict.fromkeys(REAL) if self.ra is None else self._similar_to_real(self.ra)
        nearest: list[dict[str, Any]] = []
        similar: dict[str, Any] = dict.fromkeys(SIM_AA)
        for column, metric in zip(self.columns, self.sim_aa, strict=True):
            found = metric.compute()
            similar |= {f"{key}{column}": found[key] for key in SIM_AA}
            nearest = nearest or [match._asdict() for match in found["matches"]]
        accuracy = {} if self.accuracy is None else self.accuracy.compute()
        row |= {key: ta[key] for key in TEXT} | {key: ra[key] for key in REAL}
        row |= similar
        row |= {key: value for key, value in accuracy.items() if key != "n" and value is not None}
        return row | {"n": n}, nearest

    @staticmethod
    def _similar_to_real(metric: RealAudioSimilarity) -> dict[str, Any]:
        try:  # on every rank, also one without clips: the others wait for it
            return metric.compute()
        except TooFewClips:
            return dict.fromkeys(REAL)

    def distances(self, batches: Iterable[tuple[Mapping[str, Embeddings], Sequence[str]]]) -> dict[str, Any]:
        """Distances of other real clips from the reference; the generated clips are forgotten before and after.

        Args:
            batches: Pairs of what the embedders give (`FeatureExtractor.embed`) and clip ids.

        Returns:
            `NetworkMetrics.distances` of each network and the number `n` of these clips.
        """
        self.reset_generated()
        for embedded, ids in batches:
            self.count.update(ids)
            for name, network in self.networks.items():
                network.update_sets(embedded[name], ids, real=False)
        n = self.count.compute()
        row: dict[str, Any] = {}
        for network in self.networks.values():
            row |= network.distances(n)
        self.reset_generated()
        return row | {"n": n}

    def references(self) -> dict[str, Any]:
        """The metrics that put the rows in proportion: the test set's own, and the best that retrieval could do.

        Returns:
            `test_set_ta`, `retrieval_max_ta` over the clips of `retrieval_max_gallery`, the test set's own SIM_AA
            against the training set, `acc_<group>_real`, the tagger's accuracy on the real clips, and the `n` behind
            them.
        """
        result: dict[str, Any] = {}
        if self.real_ta is not None:
            real = self.real_ta.compute()
            result |= {"test_set_ta": real["ta_similarity"], "test_set_clap_t": real["clap_t"],
                       "n_test_set_ta": real["n"]}
            if self.gallery_ND is not None:
                best = self.real_ta.retrieval_max(self.gallery_ND)
                result |= {"retrieval_max_ta": best["retrieval_max_ta"], "retrieval_max_gallery": "train"}
                result |= {"n_retrieval_max_gallery": best["n_gallery"]}
        for column, metric in zip(self.columns, self.real_sim_aa, strict=True):
            found = metric.compute()
            result |= {f"test_set_{key}{column}": found[key] for key in SIM_AA} | {"n_test_set_sim_aa": found["n"]}
        return result | self._real_accuracy()

    def _real_accuracy(self) -> dict[str, Any]:
        if self.real_accuracy is None:
            return {}
        try:  # on every rank, also one without clips: the others wait for it
            found = self.real_accuracy.compute()
        except MusiccmError:
            return {}  # the reference came without its attributes
        return {f"acc_{group}_real": found[f"acc_{group}"] for group in self.real_accuracy.groups
                if found[f"acc_{group}"] is not None}

    def _update_clap(
        self,
        ta: TextAudioSimilarity | None,
        sim_aa: Iterable[nn.Module],
        features: Features,
        text_BD: Tensor | None,
        ids: Sequence[str],
        real: bool,
    ) -> None:
        if ta is None and not self.columns:
            return
        audio_BD = features.clap_BD if features.text_audio_BD is None else features.text_audio_BD
        lacks = (audio_BD is None or text_BD is None) if ta is not None else False
        if lacks or (self.columns and features.clap_BD is None):
            raise MusiccmError("text-audio similarity, SIM_AA: expected CLAP embeddings, found none; give CLAP's")
        if ta is not None:
            ta.update(text_BD, audio_BD, ids)
        if self.ra is not None:
            self.ra.update(audio_BD, ids, real)
        for metric in sim_aa:
            metric.update(features.clap_BD, ids)


def _sim_aa(train: Train) -> list[ClipMetric]:
    if train is None:
        return []
    if isinstance(train, tuple):
        return [SimAA(train[1], train[0])]
    return [SimAA(gallery) for gallery in train.values()] if isinstance(train, Mapping) else [train()]
