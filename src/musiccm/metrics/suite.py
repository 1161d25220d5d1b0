"""All metrics over one set of features: a clip is heard once, and every figure is taken from that hearing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError
from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.metrics.frechet import FrechetDistance
from musiccm.metrics.inception import InceptionScore
from musiccm.metrics.kl import KLDivergence
from musiccm.metrics.sim_aa import SimAA
from musiccm.metrics.text_audio import TextAudioSimilarity

log = logging.getLogger(__name__)


class Features(NamedTuple):
    """What the listening networks say of a batch: embedding `[B, E]`, class logits `[B, G]`, CLAP audio `[B, D]`."""

    embedding_BE: Tensor
    logits_BG: Tensor
    clap_BD: Tensor


class Listener(nn.Module):
    """Waveforms to features: a classifier on a mel of the waveform, and CLAP's audio tower.

    Args:
        tagger: `mel_BMN -> (embedding, logits)`.
        log_mel: `waveform_BS -> mel_BMN`.
        clap_audio: `(waveform_BS, sample_rate_hz) -> [B, D]`.
        sample_rate_hz: Rate of the waveforms.
        name: What figures taken with this classifier are called after.
        groups: The classifier's outputs by attribute, such as `{"drums": [0, 1]}`; empty without attributes.
        tags: Names of the outputs, `group:value` where they state an attribute.
    """

    def __init__(
        self,
        tagger: nn.Module,
        log_mel: nn.Module,
        clap_audio: Callable[[Tensor, int], Tensor],
        sample_rate_hz: int,
        name: str = "tagger",
        groups: Mapping[str, Sequence[int]] | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.tagger = tagger.eval()
        self.log_mel = log_mel
        self.clap_audio = clap_audio
        self.sample_rate_hz = sample_rate_hz
        self.name = name
        self.groups = dict(groups or {})
        self.tags = list(tags)

    @torch.no_grad()
    def forward(self, waveform_BS: Tensor) -> Features:
        """Listen to a batch.

        Args:
            waveform_BS: Waveforms.

        Returns:
            Its features, float32.
        """
        embedding, logits = self.tagger(self.log_mel(waveform_BS.float()))
        return Features(embedding.float(), logits.float(), self.clap_audio(waveform_BS, self.sample_rate_hz).float())

    def wanted(self, attributes: Sequence[Mapping[str, str]]) -> Tensor:
        """Which of the classifier's outputs each clip's attributes ask for.

        Args:
            attributes: What is known for certain of each clip.

        Returns:
            Multi-hot tags, `[B, G]`, on the CPU.
        """
        stated = [{f"{group}:{value}" for group, value in clip.items()} for clip in attributes]
        return torch.tensor([[float(tag in clip) for tag in self.tags] for clip in stated]).view(len(stated), -1)


class MetricSuite(nn.Module):
    """The metrics of SPEC 8 behind one update; the reference is kept while models come and go.

    Args:
        name: The classifier's name; figures are called `fd_<name>`, `is_<name>_mean`, `is_<name>_std`, `kl_<name>`.
        train_clap: Ids and CLAP audio embeddings `[N, D]` of the training clips; without them there is no SIM_AA.
        groups: Attribute groups of the classifier, see `AttributeAccuracy`.
        splits: Splits of the inception score.
    """

    def __init__(
        self,
        name: str = "tagger",
        train_clap: tuple[Sequence[str], Tensor] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        splits: int = 10,
    ) -> None:
        super().__init__()
        self.name = name
        self.fd = FrechetDistance(reset_real_features=False)
        self.inception = InceptionScore(splits=splits)
        self.kl = KLDivergence(reset_real_features=False)
        self.ta, self.real_ta = TextAudioSimilarity(), TextAudioSimilarity()
        self.gallery = None if train_clap is None else train_clap[1]
        self.sim_aa = None if train_clap is None else SimAA(train_clap[1], train_clap[0])
        self.real_sim_aa = None if train_clap is None else SimAA(train_clap[1], train_clap[0])
        self.accuracy = AttributeAccuracy(groups) if groups else None

    def update_reference(self, features: Features, text_BD: Tensor, ids: Sequence[str]) -> None:
        """Add real clips.

        Args:
            features: What was heard.
            text_BD: CLAP embeddings of their captions.
            ids: Clip ids.
        """
        self.fd.update(features.embedding_BE, ids, real=True)
        self.kl.update(features.logits_BG, ids, real=True)
        self.real_ta.update(text_BD, features.clap_BD, ids)
        if self.real_sim_aa is not None:
            self.real_sim_aa.update(features.clap_BD, ids)

    def update(self, features: Features, text_BD: Tensor, ids: Sequence[str], wanted_BG: Tensor | None = None) -> None:
        """Add generated clips.

        Args:
            features: What was heard.
            text_BD: CLAP embeddings of the captions that were asked for.
            ids: Clip ids.
            wanted_BG: Tags asked for; needed where the suite has attribute groups.

        Raises:
            MusiccmError: Groups, but no tags.
        """
        self.fd.update(features.embedding_BE, ids, real=False)
        self.inception.update(features.logits_BG, ids)
        self.kl.update(features.logits_BG, ids, real=False)
        self.ta.update(text_BD, features.clap_BD, ids)
        if self.sim_aa is not None:
            self.sim_aa.update(features.clap_BD, ids)
        if self.accuracy is not None:
            if wanted_BG is None:
                raise MusiccmError("attribute accuracy: expected the tags that were asked for, found none")
            self.accuracy.update(features.logits_BG, wanted_BG, ids)

    def reset_generated(self) -> None:
        """Forget the generated clips, keep the reference."""
        for metric in (self.fd, self.inception, self.kl, self.ta, self.sim_aa, self.accuracy):
            if metric is not None:
                metric.reset()

    def compute(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The figures of the generated clips.

        Returns:
            A row of figures with its `n`, and for each clip its nearest training clip (empty without training
            embeddings). The inception score is None where there are fewer than two clips a split: it would say nothing.
        """
        fd, kl, ta = self.fd.compute(), self.kl.compute(), self.ta.compute()
        row: dict[str, Any] = {f"fd_{self.name}": fd["fd"]}
        enough = fd["n"] >= 2 * self.inception.splits
        if not enough:
            log.warning("inception score left out: %d clips, fewer than 2 in each of %d splits", fd["n"],
                        self.inception.splits)
        score = self.inception.compute() if enough else {"is_mean": None, "is_std": None}
        row |= {f"is_{self.name}_mean": score["is_mean"], f"is_{self.name}_std": score["is_std"]}
        row |= {f"kl_{self.name}": kl["kl"], f"kl_{self.name}_exact": kl["kl_exact"]}
        row["ta_similarity"] = ta["ta_similarity"]
        nearest: list[dict[str, Any]] = []
        row |= {"sim_aa_90": None, "sim_aa_95": None}
        if self.sim_aa is not None:
            found = self.sim_aa.compute()
            row |= {key: found[key] for key in ("sim_aa_90", "sim_aa_95")}
            nearest = [match._asdict() for match in found["matches"]]
        if self.accuracy is not None:
            row |= {key: value for key, value in self.accuracy.compute().items() if key != "n" and value is not None}
        return row | {"n": fd["n"]}, nearest

    def references(self) -> dict[str, Any]:
        """The figures that put the rows in proportion: the test set's own, and the best that retrieval could do.

        Returns:
            `test_set_ta`, `retrieval_max_ta` over the clips of `retrieval_max_gallery`, the test set's own SIM_AA
            against the training set, and the `n` behind them.
        """
        real = self.real_ta.compute()
        result: dict[str, Any] = {"test_set_ta": real["ta_similarity"], "n": real["n"]}
        if self.gallery is not None and self.real_sim_aa is not None:
            best = self.real_ta.retrieval_max(self.gallery)
            found = self.real_sim_aa.compute()
            result |= {"retrieval_max_ta": best["retrieval_max_ta"], "retrieval_max_gallery": "train"}
            result |= {"n_gallery": best["n_gallery"]}
            result |= {f"test_set_{key}": found[key] for key in ("sim_aa_90", "sim_aa_95")}
        return result
