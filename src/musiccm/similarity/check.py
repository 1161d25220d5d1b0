"""The plagiarism check of a folder: embed it, search the index, calibrate on real music, look closely, write it up."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm import __version__
from musiccm.audio.mel import LogMel
from musiccm.device import choose_device
from musiccm.errors import MusiccmError
from musiccm.files import write_json
from musiccm.models.bundle import Bundle
from musiccm.similarity.clap_windows import CLAP_PARTS, CONDITIONER_PARTS, ClapWindows, middle
from musiccm.similarity.folder_features import FolderFeatures, embed_folder
from musiccm.similarity.index import TrainingIndex
from musiccm.similarity.mel_match import MelMatcher
from musiccm.similarity.nearest import Neighbours, Queries, nearest_clips
from musiccm.similarity.page import write_page
from musiccm.similarity.pairs import Neighbour, Suspect, examine
from musiccm.similarity.sim_aa import rates, share_above
from musiccm.texts import escaped

#: Shares of held-out music whose highest cosines are stated as thresholds of its own.
HELD_OUT_QUANTILES = (0.95, 0.99)
_ENOUGH_FOR_QUANTILES = 20
#: Share of real clips above a threshold from which on it says little.
SATURATED = 0.1


def check_plagiarism(
    generated: str | Path,
    index: str | Path | TrainingIndex,
    out: str | Path = "plagiarism",
    *,
    reference: str | Path | None = None,
    bundle: str | None = None,
    top: int = 5,
    pairs: int = 50,
    train_clips: int = 1000,
    copy_above: float = 0.7,
    faiss: bool = False,
    nprobe: int = 64,
    batch_size: int = 16,
    workers: int = 2,
    device: str = "auto",
) -> dict[str, Any]:
    """Run the check and write `index.html`, `plagiarism.json` and the audio beside them.

    Args:
        generated: Folder of generated audio.
        index: Index of the training clips, or its folder.
        out: Folder to write.
        reference: Folder of held-out real music: what the rates are read against.
        bundle: Whose CLAP; the index's own if None.
        top: Training clips to find for each.
        pairs: Clips to look at closely, nearest first.
        train_clips: Training clips to compare with the others, for calibration.
        copy_above: Log-mel correlation that makes a likely copy.
        faiss: Search with the FAISS index beside the index.
        nprobe: Lists that FAISS looks at.
        batch_size: Windows embedded at a time.
        workers: Threads that decode.
        device: Where to compute.

    Returns:
        What stands in `plagiarism.json`.

    Raises:
        MusiccmError: A folder, index or bundle that cannot be used, or no file that can be.
    """
    for name, value, smallest in (("top", top, 1), ("pairs", pairs, 1), ("nprobe", nprobe, 1),
                                  ("batch_size", batch_size, 1), ("train_clips", train_clips, 0)):
        if value < smallest:
            raise MusiccmError(f"{name}: expected at least {smallest}, found {value}")
    if not -1 <= copy_above <= 1:
        raise MusiccmError(f"copy_above: expected a correlation from -1 to 1, found {copy_above}")
    index, out = index if isinstance(index, TrainingIndex) else TrainingIndex(index), Path(out)
    for folder in (generated, reference):
        if folder is None:
            continue
        if out.resolve().is_relative_to(Path(folder).resolve()):
            raise MusiccmError(f"out: {out} lies in {folder}, and its audio would be taken for clips the next time; "
                               "name a folder elsewhere")
    opened = Bundle.from_pretrained(bundle or index.about["bundle"], CONDITIONER_PARTS)
    where = choose_device(device)
    clap = index_clap(index, opened, where, batch_size, workers)
    search, description, exact = _searcher(index, faiss, nprobe)

    embedded = embed_folder(clap, Path(generated))
    counts = [len(starts) for starts in embedded.starts_s]
    found = search(Queries(embedded.rows, counts, device=where), min(top, index.n_clips))
    windows = statistics.median_low(counts)
    metrics, left_out = {"generated": _metrics(found.cosine_QK[:, 0], counts)}, list(embedded.left_out)
    held_out = held_out_found = None
    if reference:
        held_out = embed_folder(clap, Path(reference), windows)
        left_out += held_out.left_out
        held_counts = [len(starts) for starts in held_out.starts_s]
        held_out_found = search(Queries(held_out.rows, held_counts, device=where), 1)
        metrics["held_out"] = _metrics(held_out_found.cosine_QK[:, 0], held_counts)
    if train_clips > 0 and index.n_clips > 1:
        queries = train_queries(index, train_clips, windows, where)
        metrics["train_itself"] = _metrics(search(queries, 1).cosine_QK[:, 0], queries.counts)

    matcher = MelMatcher(LogMel(opened.mel), min(5.0, index.window_s))
    suspects = _suspects(index, embedded, found, pairs)
    second = examine(suspects, matcher, index.window_s, copy_above, out)
    if held_out is not None and held_out_found is not None:
        second["held_out"] = examine(
            _suspects(index, held_out, held_out_found, pairs), matcher, index.window_s, copy_above, None)
    content = {
        "schema": 1,
        "musiccm": __version__,
        "generated": escaped(generated),
        "reference": None if reference is None else escaped(reference),
        "index": {"folder": escaped(index.folder), "clips": index.n_clips, "windows": index.n_rows, "key": index.key,
                  "about": index.about},
        "search": {"method": description, "exact": exact},
        "window_s": index.window_s,
        "rates": metrics,
        "notes": _notes(metrics, found, held_out_found, exact),
        "second_opinion": second,
        "clips": _clips(index, embedded, found),
        "suspects": [suspect.as_dict() for suspect in suspects],
        "left_out": [vars(item) for item in left_out],
    }
    write_json(out / "plagiarism.json", content)
    maxima = {name: column for name, column in (
        ("generated", found.cosine_QK[:, 0].tolist()),
        ("held_out", None if held_out_found is None else held_out_found.cosine_QK[:, 0].tolist()),
    ) if column is not None}
    write_page(out / "index.html", content, maxima)
    return content


def index_clap(index: TrainingIndex, bundle: Bundle, device: str, batch_size: int, workers: int) -> ClapWindows:
    """A CLAP that embeds as the index was embedded.

    Raises:
        MusiccmError: The bundle's CLAP is another than the index was built with.
    """
    hop_s = index.key["hop_samples"] / index.key["sample_rate_hz"]
    index.refuse_other_clap(bundle.content_hash(CLAP_PARTS))
    return ClapWindows.of_bundle(bundle, device, hop_s, index.key["window_samples"], batch_size=batch_size,
                                 workers=workers)


def train_queries(index: TrainingIndex, limit: int, windows: int, device: str) -> Queries:
    """Training clips to search for in the index, each without itself.

    Args:
        index: The training clips.
        limit: At most this many, chosen by a hash of their ids.
        windows: Windows of each, from its middle: as many as a generated clip has, for a longer clip finds nearer ones.
        device: Where to search.

    Returns:
        The queries; clips whose windows are all silent are not among them.
    """
    ranked = sorted((hashlib.blake2b(index.ids[clip].encode(), digest_size=8).digest(), clip)
                    for clip in range(index.n_clips))
    rows, clips = [], []
    for clip in sorted(clip for _, clip in ranked[:limit]):
        first, last = int(index.first_row[clip]), int(index.first_row[clip + 1])
        mine = index.read(first, last)[middle(last - first, windows)]
        if bool(mine.any()):
            rows.append(mine)
            clips.append(clip)
    return Queries(torch.cat(rows), [len(mine) for mine in rows], clips, device)


def _searcher(
    index: TrainingIndex, faiss: bool, nprobe: int
) -> tuple[Callable[[Queries, int], Neighbours], str, bool]:
    if faiss:
        from musiccm.similarity.faiss_search import FaissSearch

        approximate = FaissSearch(index, nprobe)
        return approximate.nearest_clips, approximate.description, approximate.exact
    return lambda queries, k: nearest_clips(index, queries, k), "all windows", True


def _metrics(maxima: Tensor, counts: list[int]) -> dict[str, Any]:
    quantiles = torch.quantile(maxima, torch.tensor([0.05, 0.5, 0.95], dtype=maxima.dtype, device=maxima.device))
    return {"n": len(maxima), **rates(maxima), "quantile_05": float(quantiles[0]), "median": float(quantiles[1]),
            "quantile_95": float(quantiles[2]), "windows_a_clip": statistics.median_low(counts)}


def _notes(metrics: dict[str, Any], found: Neighbours, held_out: Neighbours | None, exact: bool) -> list[str]:
    """What must be known to read the metrics, in numbers."""
    notes = [] if exact else ["The search did not look at every window: the rates are lower bounds."]
    for key, name in (("sim_aa_90", "0.90"), ("sim_aa_95", "0.95")):
        other = "held_out" if "held_out" in metrics else "train_itself"
        if other in metrics:
            notes.append(_beside_real(name, metrics["generated"], metrics[other], key, other))
    if held_out is None:
        notes.append("Nothing was held out for comparison: name a folder of real music that was not trained on as the "
                     "reference.")
        return notes
    maxima, real = found.cosine_QK[:, 0], held_out.cosine_QK[:, 0]
    if len(real) < _ENOUGH_FOR_QUANTILES:
        notes.append(f"Only {len(real)} held-out clips: too few for thresholds of their own.")
        return notes
    for quantile in HELD_OUT_QUANTILES:
        if len(real) * (1 - quantile) < 0.99:  # not even one clip lies above it
            continue
        threshold = float(torch.quantile(real, quantile))
        notes.append(f"{1 - quantile:.0%} of held-out clips are nearer than {threshold:.4f} to a training clip; of "
                     f"generated clips, {share_above(maxima, threshold):.3f} are.")
    return notes


def _beside_real(name: str, ours: dict[str, Any], real: dict[str, Any], key: str, other: str) -> str:
    what = {"held_out": "held-out real clips", "train_itself": "training clips, none against itself"}[other]
    p, q, n, m = ours[key], real[key], ours["n"], real["n"]
    # Two standard errors of the difference of two shares, under the hypothesis that they are one.
    pooled = (p * n + q * m) / (n + m)
    noise = 2 * math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    verdict = "more than real music comes to" if p - q > noise else "no more than real music comes to"
    text = f"At {name}: {p:.3f} of {n} generated clips, {q:.3f} of {m} {what}: {verdict} (noise {noise:.3f})."
    return f"{text} SIM_AA is saturated here, and hardly tells copies from look-alikes." if q >= SATURATED else text


def _clips(index: TrainingIndex, embedded: FolderFeatures, found: Neighbours) -> list[dict[str, Any]]:
    return [{"id": suspect.clip_id, "nearest": [neighbour.as_dict() for neighbour in suspect.neighbours]}
            for suspect in _suspects(index, embedded, found, None)]


def _suspects(index: TrainingIndex, embedded: FolderFeatures, found: Neighbours, limit: int | None) -> list[Suspect]:
    """Clips by their highest cosine, nearest first."""
    order = sorted(range(len(embedded.ids)), key=lambda n: (-float(found.cosine_QK[n, 0]), embedded.ids[n]))
    suspects = []
    for number in order[:limit]:
        columns = (column[number].tolist() for column in found)
        suspects.append(Suspect(embedded.ids[number], embedded.paths[number], [
            Neighbour(index.ids[clip], index.paths[clip], cosine, embedded.starts_s[number][window], index.start_s(row))
            for cosine, clip, row, window in zip(*columns, strict=True) if clip >= 0
        ]))
    return suspects
