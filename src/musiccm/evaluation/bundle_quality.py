"""What a bundle's parts are worth on clips that none of them was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from musiccm.audio import LogMel
from musiccm.data.batch import WaveformBatch
from musiccm.embedders import load_embedder
from musiccm.losses.contrastive import recall_at_k
from musiccm.metrics.attributes import AttributeAccuracy
from musiccm.metrics.frechet import FrechetDistance
from musiccm.metrics.readings import Reading
from musiccm.models.bundle import Bundle
from musiccm.models.codec import SoundEncoder
from musiccm.progress import Progress

TAGGER, EVENTS = {"evaluators/tagger"}, {"evaluators/sections"}
#: How the metrics of each decoder's reconstructions begin.
PREFIX = {"original": "", "fast": "fast_"}
CLAP = {"text_encoder", "tokenizer", "feature_extractor"}
RECALLED = 10


def decoders(bundle: Bundle) -> list[str]:
    """The decoders that a bundle has, by the names that `Bundle.codec` takes: `original`, and `fast` where it is."""
    return [name for name in PREFIX if name in bundle.decoders]


def frechet(real_ED: Tensor, fake_ED: Tensor) -> float:
    """Frechet distance of two sets of embeddings, one row a clip."""
    metric = FrechetDistance()
    metric.update(real_ED, [f"r{i}" for i in range(len(real_ED))], real=True)
    metric.update(fake_ED, [f"f{i}" for i in range(len(fake_ED))], real=False)
    return float(metric.compute()["fd"])


def events_reader(bundle: Bundle, present: set[str]) -> Any:
    """The embedder `events` of a bundle; None where it has no tagger of sections.

    Args:
        bundle: The bundle.
        present: Parts that it has.
    """
    return load_embedder("events", bundle=bundle) if present >= EVENTS else None


@torch.inference_mode()
def embed_parts(
    bundle: Bundle, batches: Iterable[WaveformBatch], present: set[str], total: int, events: Any = None
) -> dict[str, Any]:
    """Embed every clip, its reconstruction by VAE and vocoder, and the one by VAE and fast decoder.

    Args:
        bundle: The bundle.
        batches: Held-out clips, their tags in the order of the tagger's outputs.
        present: Parts that the bundle has; what needs another one is left out.
        total: Number of clips, for the progress bar.
        events: What reads order, counts and tempi of every clip; None reads none.

    Returns:
        `ids`, and by name the joined rows: `tags`, `real_embedding`, `real_logits`, `clap_text`, `clap_audio`; and of
        each decoder `<name>_embedding`, `<name>_logits`, `<name>_audio`. With `events` also `asked`, and what was read:
        `real_read`, `<name>_read`.
    """
    log_mel = LogMel(bundle.mel)
    tagger = bundle.evaluators["tagger"] if present >= TAGGER else None
    codecs = {name: bundle.codec(name) for name in decoders(bundle) if present >= set(bundle.kind.decoding[name])}
    encoder = SoundEncoder(next(iter(codecs.values()))) if codecs else None
    conditioner = bundle.conditioner() if present >= CLAP else None
    ids: list[str] = []
    rows: dict[str, list[Tensor]] = {}

    def keep(**tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            rows.setdefault(name, []).append(tensor)

    def read(waveform_BS: Tensor) -> Tensor:
        return events(waveform_BS, bundle.sample_rate_hz).logits_BG

    with Progress(total, "embedding", "clip") as bar:
        for batch in batches:
            ids += batch.ids
            mel_BMN = log_mel(batch.waveform_BS)
            if tagger is not None:
                embedding, logits = tagger(mel_BMN)
                keep(tags=batch.tags_BG, real_embedding=embedding, real_logits=logits)
            if conditioner is not None:
                keep(clap_text=conditioner.text(batch.captions),
                     clap_audio=conditioner.audio(batch.waveform_BS, bundle.sample_rate_hz))
            if events is not None:
                keep(asked=events.asked(batch.attributes or [{}] * len(batch)), real_read=read(batch.waveform_BS))
            z_BCTF = encoder(batch.waveform_BS) if encoder is not None else None
            for name, codec in codecs.items():
                sound_BS = codec.decode(z_BCTF)
                if tagger is not None:
                    embedding, logits = tagger(log_mel(sound_BS))
                    keep(**{f"{name}_embedding": embedding, f"{name}_logits": logits})
                if conditioner is not None:
                    keep(**{f"{name}_audio": conditioner.audio(sound_BS, bundle.sample_rate_hz)})
                if events is not None:
                    keep(**{f"{name}_read": read(sound_BS)})
            bar.update(len(batch.ids))
    return {"ids": ids} | {name: torch.cat(tensors) for name, tensors in rows.items()}


def quality_of(
    embedded: dict[str, Any], groups: dict[str, list[int]], pairs: int = 500,
    readings: Mapping[str, Reading] | None = None,
) -> dict[str, Any]:
    """The metrics, each with its n.

    Args:
        embedded: What `embed_parts` gave.
        groups: The tagger's groups.
        pairs: Recall is taken over at most this many pairs, for it falls as they grow in number.
        readings: What of events is compared.

    Returns:
        `tagger_accuracy`, `reconstruction_accuracy` (with the share kept), `fd_tagger`, `events_accuracy`,
        `reconstruction_events_accuracy`, `clap`, `text_audio`; each only where its parts were there, and those of the
        fast decoder behind `fast_`. Of events, `<group>_n` clips ask for a group.
    """
    result: dict[str, Any] = {}
    ids, n = embedded["ids"], len(embedded["ids"])
    if "real_logits" in embedded:
        real = _accuracy(embedded["real_logits"], embedded["tags"], ids, groups)
        result["tagger_accuracy"] = {"n": n, **real}
        result["fd_tagger"] = _distances(embedded)
    for name, prefix in PREFIX.items():
        if f"{name}_logits" in embedded:
            fake = _accuracy(embedded[f"{name}_logits"], embedded["tags"], ids, groups)
            fake = {group: value for group, value in fake.items() if group in groups}  # chance stands with the real
            kept = {f"{group}_kept": fake[group] / real[group] for group in fake if real[group]}
            result[f"{prefix}reconstruction_accuracy"] = {"n": n, **fake, **kept}
    for name, title in {"real": "", **{name: f"{prefix}reconstruction_" for name, prefix in PREFIX.items()}}.items():
        if readings and f"{name}_read" in embedded:
            rows_BG, asked_BG = embedded[f"{name}_read"], embedded["asked"]
            counts = {f"{group}_n": int(reading.compare(rows_BG, asked_BG)[1].sum())
                      for group, reading in readings.items()}
            right = _accuracy(rows_BG, asked_BG, ids, readings)
            result[f"{title}events_accuracy"] = {"n": n, **right, **{k: v for k, v in counts.items() if v}}
    if "clap_text" in embedded:
        text, audio = embedded["clap_text"][:pairs], embedded["clap_audio"][:pairs]
        result["clap"] = {
            "n": len(text),
            f"text_to_audio_recall_at_{RECALLED}": recall_at_k(text, audio, RECALLED),
            f"audio_to_text_recall_at_{RECALLED}": recall_at_k(audio, text, RECALLED),
            f"chance_at_{RECALLED}": min(1.0, RECALLED / len(text)),
        }
        sounds = {"real": embedded["clap_audio"]} | {
            f"{PREFIX[name]}reconstructions": embedded[f"{name}_audio"]
            for name in PREFIX if f"{name}_audio" in embedded
        }
        result["text_audio"] = {"n": n} | {
            name: torch.cosine_similarity(embedded["clap_text"], rows).double().mean().item()
            for name, rows in sounds.items()
        }
    return result


def _accuracy(
    logits: Tensor, tags: Tensor, ids: list[str], groups: Mapping[str, list[int] | Reading]
) -> dict[str, float]:
    if not groups:
        return {}
    metric = AttributeAccuracy(groups)
    metric.update(logits, tags, ids)
    measured = metric.compute()
    return {name: value for group in groups for name in (group, f"{group}_chance")
            if (value := measured[f"acc_{name}"]) is not None}


def _distances(embedded: dict[str, Any]) -> dict[str, Any]:
    """The distance falls with n, so what is to be compared is taken at the same n: a half against the other half."""
    real = embedded["real_embedding"]
    half = len(real) // 2
    if half < 2:
        return {"n": half}
    first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    result: dict[str, Any] = {"n": half, "real_against_other_half": frechet(real[second], real[first])}
    for name, prefix in PREFIX.items():
        if f"{name}_embedding" in embedded:
            fake = embedded[f"{name}_embedding"]
            result[f"{prefix}reconstructions_against_other_half"] = frechet(real[second], fake[first])
            result["n_paired"] = len(real)
            result[f"{prefix}reconstructions_against_their_originals"] = frechet(real, fake)
    return result
