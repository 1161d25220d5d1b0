"""Whether the CLAP behind a teacher knows the music of a corpus: are real clips nearer to their own captions?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from musiccm.metrics.jackknife import FEWEST, Interval, jackknife

#: Share of pairs that drawing lots would get right.
CHANCE = 0.5
#: Below this share a CLAP that is better than chance still hardly tells the captions apart.
HARDLY = 0.6


def own_caption_preferred(audio_ND: Tensor, text_ND: Tensor, captions: Sequence[str], draws: int = 200) -> Interval:
    """How often a clip is more similar to its own caption than to another clip's.

    Args:
        audio_ND: Embeddings of real clips.
        text_ND: Embeddings of their captions.
        captions: The captions; pairs of clips with the same one say nothing and are left out.
        draws: Halves of the clips that the interval rests on.

    Returns:
        The share of pairs with its 95 % interval, ties counted half; 0.5 is chance, and what is left where all captions
        are the same.
    """
    unit_audio, unit_text = (torch.nn.functional.normalize(rows.double(), dim=1) for rows in (audio_ND, text_ND))
    similarity_NN = (unit_audio @ unit_text.T).cpu().numpy()
    own_N1 = similarity_NN.diagonal()[:, None]
    preferred_NN = (own_N1 > similarity_NN) + 0.5 * (own_N1 == similarity_NN)
    numbers = np.unique(captions, return_inverse=True)[1]
    other_NN = numbers[:, None] != numbers[None, :]

    def share(names: Sequence[str]) -> dict[str, float]:
        chosen = np.ix_(*[[int(name) for name in names]] * 2)
        pairs = other_NN[chosen]
        return {"share": float(preferred_NN[chosen][pairs].mean()) if pairs.any() else CHANCE}

    found = jackknife(share, [str(place) for place in range(len(captions))], draws)["share"]
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))


def of_real_clips(
    ids: Sequence[str], audio_ND: Tensor | None, prompts: Mapping[str, str], texts: Mapping[str, Tensor],
    draws: int = 200,
) -> dict[str, float] | None:
    """The same of an evaluation's real clips.

    Args:
        ids: Theirs.
        audio_ND: Their embeddings by the CLAP that measures.
        prompts: Captions by id.
        texts: The captions' embeddings `[D]` by that CLAP; none without one.
        draws: See `own_caption_preferred`.

    Returns:
        `share`, `low`, `high` and `n`, for results.json; None without a CLAP, or of fewer clips than an interval needs.
    """
    if not texts or audio_ND is None or len(ids) < FEWEST or draws < 4:
        return None
    captions = [prompts[name] for name in ids]
    text = torch.stack([texts[caption] for caption in captions])
    found = own_caption_preferred(audio_ND, text, captions, draws)
    return {"share": found.value, "low": found.low, "high": found.high, "n": len(ids)}


def unknown_corpus(found: Mapping[str, float] | None, of_teacher: bool) -> str | None:
    """What a reader should know where real clips are hardly nearer to their own captions than to others'.

    Args:
        found: See `of_real_clips`.
        of_teacher: Whether the CLAP is the teacher's bundle's, and no other one that measures.

    Returns:
        A sentence; None where the captions are told apart, or nothing was found out.
    """
    if found is None or (found["low"] > CHANCE and found["high"] >= HARDLY):
        return None
    whose, remedy = "the teacher's CLAP", ("a student of this teacher will not follow these captions: take a teacher "
                                           "of such music (model.init_args.bundle), or train one "
                                           "(docs/train_a_teacher.md)")
    if not of_teacher:
        whose, remedy = "the CLAP that measures", "its similarities say nothing here: name another by text_audio"
    return (f"{whose} does not know this corpus: real clips are nearer to their own caption than to another clip's in "
            f"{found['share']:.2f} [{found['low']:.2f}, {found['high']:.2f}] of the pairs, where chance is {CHANCE} "
            f"(n = {found['n']:,}); {remedy}")
