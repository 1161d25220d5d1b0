"""Whether real clips are told from others by their captions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from musiccm.evaluation.own_captions import of_real_clips, own_caption_preferred, unknown_corpus


def rows(seed: int, n: int = 40, width: int = 16) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def captions(n: int = 40, different: int = 40) -> list[str]:
    return [f"caption {i % different}" for i in range(n)]


def test_the_share_is_that_of_counting_pair_by_pair() -> None:
    audio, text, words = rows(1, 12), rows(2, 12) + 0.3 * rows(1, 12), captions(12, 5)
    right = []
    for i in range(12):
        for j in range(12):
            if words[i] != words[j]:
                own, other = (float(torch.cosine_similarity(audio[i], text[k], dim=0)) for k in (i, j))
                right.append(own > other)
    assert own_caption_preferred(audio, text, words).value == pytest.approx(np.mean(right))


def test_the_interval_holds_chance_for_captions_of_other_music_and_not_for_its_own() -> None:
    held = 0
    for seed in range(40):
        found = own_caption_preferred(rows(seed), rows(1000 + seed), captions(), draws=60)
        held += found.low <= 0.5 <= found.high
    assert held >= 35, "95 % of 40, less two standard deviations"
    known = own_caption_preferred(rows(1), rows(1) + rows(2), captions())
    assert known.low > 0.7 and known.high <= 1.0
    assert own_caption_preferred(rows(1), rows(1), captions()).value == 1.0
    assert own_caption_preferred(rows(1), rows(2), captions(different=1)).value == 0.5


def measured(text: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(captions(), text, strict=True))


def test_one_sentence_says_so_and_what_to_do() -> None:
    ids = [f"clip{i}" for i in range(40)]
    prompts = dict(zip(ids, captions(), strict=True))
    unknown = of_real_clips(ids, rows(1), prompts, measured(rows(2)))
    assert unknown is not None and unknown["n"] == 40 and unknown["low"] < 0.5 < unknown["high"]
    said = unknown_corpus(unknown, of_teacher=True)
    assert said is not None and "\n" not in said and "the teacher's CLAP does not know this corpus" in said
    numbers = f"{unknown['share']:.2f} [{unknown['low']:.2f}, {unknown['high']:.2f}]"
    assert numbers in said and "train_a_teacher.md" in said
    assert "text_audio" in (unknown_corpus(unknown, of_teacher=False) or "")
    assert unknown_corpus(of_real_clips(ids, rows(1), prompts, measured(rows(1))), of_teacher=True) is None
    assert of_real_clips(ids[:7], rows(1)[:7], prompts, measured(rows(2))) is None, "too few for an interval"
    assert of_real_clips(ids, None, prompts, {}) is None and unknown_corpus(None, True) is None
