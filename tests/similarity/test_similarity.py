"""Text-audio similarity, SIM_AA and attribute accuracy on cases that can be checked by hand."""

from __future__ import annotations

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.metrics import AttributeAccuracy, TextAudioSimilarity
from musiccm.similarity.sim_aa import SimAA, share_above


def test_text_audio_similarity_and_retrieval_max(device: str) -> None:
    metric = TextAudioSimilarity().to(device)
    text = torch.tensor([[2.0, 0.0], [0.0, 1.0]], device=device)
    metric.update(text, torch.tensor([[3.0, 4.0], [4.0, 3.0]], device=device), ["a", "b"])
    metric.update(text[:1], torch.tensor([[1.0, 0.0]], device=device), ["a"])
    assert metric.compute() == {"ta_similarity": pytest.approx(0.6), "clap_t": pytest.approx(60.0), "n": 2}
    gallery = torch.tensor([[3.0, 4.0], [4.0, 3.0], [-1.0, 0.0]], device=device)
    best = metric.retrieval_max(gallery, block=2)
    assert best == {"retrieval_max_ta": pytest.approx(0.8), "n": 2, "n_gallery": 3}


def test_sim_aa_threshold_is_strict() -> None:
    maxima = torch.tensor([0.91, 0.96, 0.50, 0.95], dtype=torch.float64)
    assert share_above(maxima, 0.90) == 0.75
    assert share_above(maxima, 0.95) == 0.25
    # 3/5 is the same float64 on both sides: exactly at the threshold, hence not above it.
    metric = SimAA(torch.tensor([[1.0, 0.0]]), ["t"], thresholds=(0.6, 0.59))
    metric.update(torch.tensor([[3.0, 4.0]]), ["g"])
    result = metric.compute()
    assert (result["sim_aa_60"], result["sim_aa_59"]) == (0.0, 1.0)


def test_copy_counts_at_both_and_orthogonal_at_none(device: str) -> None:
    metric = SimAA(torch.eye(4)[:2], ["first", "second"]).to(device)
    metric.update(torch.tensor([[0.0, 7.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]], device=device), ["copy", "new"])
    result = metric.compute()
    assert (result["sim_aa_90"], result["sim_aa_95"], result["n"], result["n_train"]) == (0.5, 0.5, 2, 2)
    assert result["matches"][0][:3] == ("copy", "second", pytest.approx(1.0))
    assert result["matches"][1].cosine == 0.0


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_sim_aa_equals_brute_force_in_any_order(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    train, audio = torch.randn(50, 6, generator=generator), torch.randn(30, 6, generator=generator)
    cosine = torch.nn.functional.cosine_similarity(audio.double()[:, None], train.double()[None], dim=2)
    ids, train_ids = [f"g{i}" for i in range(30)], [f"t{i}" for i in range(50)]
    metric = SimAA(train, train_ids, thresholds=(0.8, 0.9), block=block)
    order = torch.randperm(30, generator=generator).tolist()
    for start in range(0, 30, 8):
        part = order[start : start + 8]
        metric.update(audio[part], [ids[i] for i in part])
    metric.update(audio[:4], ids[:4])
    result = metric.compute()
    assert result["sim_aa_80"] == pytest.approx(float((cosine.amax(dim=1) > 0.8).double().mean()))
    assert result["n"] == 30
    found = {match.clip_id: match for match in result["matches"]}
    for i in range(30):
        assert found[ids[i]].nearest_id == train_ids[int(cosine[i].argmax())]
        assert found[ids[i]].cosine == pytest.approx(float(cosine[i].max()), abs=1e-12)


def test_sim_aa_takes_the_best_window() -> None:
    metric = SimAA(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ["x", "y"])
    metric.update(torch.tensor([[[1.0, 1.0], [0.0, 2.0]]]), ["g"])
    assert metric.compute()["matches"][0][:3] == ("g", "y", pytest.approx(1.0))


def test_sim_aa_refuses_what_cannot_be_compared() -> None:
    with pytest.raises(MusiccmError, match="found none"):
        SimAA(torch.empty(0, 4), [])
    metric = SimAA(torch.eye(4), list("abcd"))
    with pytest.raises(MusiccmError, match="found 3"):
        metric.update(torch.ones(1, 3), ["g"])


def test_attribute_accuracy_counts_only_what_was_asked() -> None:
    metric = AttributeAccuracy({"instrument": [0, 1, 2], "drums": [3, 4]})
    logits = torch.tensor([[5.0, 1, 0, 0, 1], [0, 2, 1, 3, 0], [0, 0, 9, 1, 0]])
    tags = torch.tensor([[1.0, 0, 0, 0, 1], [1, 0, 0, 1, 0], [0, 1, 1, 0, 0]])
    metric.update(logits, tags, ["a", "b", "c"])
    metric.update(logits[1:2], tags[1:2], ["b"])
    # of three clips two have instrument 0 or 1, of two with drums each has others
    assert metric.compute() == {"n": 3, "acc_instrument": pytest.approx(2 / 3), "acc_instrument_chance": 2 / 3,
                                "acc_drums": 1.0, "acc_drums_chance": 0.5}
