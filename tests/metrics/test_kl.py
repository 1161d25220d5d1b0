"""KL(reference || generated): hand-checkable cases, the reference implementation, pairing by id."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from musiccm.errors import MusiccmError
from musiccm.metrics import KLDivergence


def divergence(reference: torch.Tensor, generated: torch.Tensor) -> dict:
    metric = KLDivergence().to(reference.device)
    ids = [f"c{i}" for i in range(len(reference))]
    metric.update(reference, ids, real=True)
    metric.update(generated, ids, real=False)
    return metric.compute()


def test_hand_checkable_pairs(device: str) -> None:
    half, quarter = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]], device=device).log()
    assert divergence(half, quarter)["kl_exact"] == pytest.approx(0.143841, abs=1e-6)
    assert divergence(quarter, half)["kl_exact"] == pytest.approx(0.130812, abs=1e-6)


def test_itself_is_zero_and_the_eps_form_slightly_below() -> None:
    logits = torch.zeros(4, 527)
    result = divergence(logits, logits)
    assert result["kl_exact"] == pytest.approx(0.0, abs=1e-12)
    assert result["kl"] == pytest.approx(-5.27e-4, rel=1e-3)
    assert result["n"] == 4


def test_equals_audioldm_eval_with_shuffled_files() -> None:
    calculate_kl = pytest.importorskip("audioldm_eval.metrics.kl").calculate_kl
    generator = torch.Generator().manual_seed(0)
    reference, generated = 3 * torch.randn(40, 7, generator=generator), 3 * torch.randn(40, 7, generator=generator)
    ids, order = [f"c{i}.wav" for i in range(40)], torch.randperm(40, generator=generator).tolist()
    expected, _, _ = calculate_kl(
        {"logits": generated[order].double(), "file_path_": [ids[i] for i in order]},
        {"logits": reference.double(), "file_path_": ids},
        "logits",
    )
    metric = KLDivergence()
    metric.update(reference, ids, real=True)
    for start in range(0, 40, 9):
        part = order[start : start + 9]
        metric.update(generated[part], [ids[i] for i in part], real=False)
    metric.update(generated[:3], ids[:3], real=False)
    assert metric.compute()["kl"] == pytest.approx(expected["kullback_leibler_divergence_softmax"], rel=1e-10)
    assert metric.compute()["n"] == 40


def test_generated_clip_without_reference_is_named() -> None:
    metric = KLDivergence()
    metric.update(torch.zeros(2, 3), ["a", "b"], real=True)
    metric.update(torch.zeros(2, 3), ["a", "stray"], real=False)
    with pytest.raises(MusiccmError, match="stray"):
        metric.compute()


@given(st.lists(st.tuples(st.integers(0, 11), st.booleans()), max_size=60), st.booleans())
def test_any_order_of_arrival_gives_the_same(arrivals: list[tuple[int, bool]], keep: bool) -> None:
    generator = torch.Generator().manual_seed(8)
    logits = {True: 2 * torch.randn(12, 4, generator=generator), False: 2 * torch.randn(12, 4, generator=generator)}
    expected = float(torch.nn.functional.kl_div(
        logits[False].double().log_softmax(1), logits[True].double().log_softmax(1), reduction="batchmean",
        log_target=True,
    ))
    metric = KLDivergence(reset_real_features=not keep)
    for i, real in [*arrivals, *((i, real) for real in (True, False) for i in range(12))]:
        metric.update(logits[real][i : i + 1], [f"c{i}"], real)
    result = metric.compute()
    assert (result["n"], result["kl_exact"]) == (12, pytest.approx(expected, rel=1e-12))


def test_a_pair_that_has_met_is_two_numbers() -> None:
    metric = KLDivergence()
    for i in range(5):
        ids = [f"c{i}a", f"c{i}b"]
        metric.update(torch.randn(2, 527), ids, real=True)
        metric.update(torch.randn(2, 527), ids[::-1], real=False)
    assert not any(metric._waiting.values())
    assert [values.shape for values in metric.pair_values] == [(2, 2)] * 5
    assert metric.compute()["n"] == 10


def test_one_pair_is_enough_and_no_number_is_named() -> None:
    assert divergence(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]))["n"] == 1
    with pytest.raises(MusiccmError, match="c1"):
        divergence(torch.zeros(2, 2), torch.tensor([[0.0, 1.0], [0.0, float("inf")]]))
    with pytest.raises(MusiccmError, match="found none"):
        KLDivergence().compute()


def test_reference_is_kept_over_reset() -> None:
    metric = KLDivergence(reset_real_features=False)
    metric.update(torch.tensor([[0.0, 0.0]]), ["a"], real=True)
    metric.update(torch.tensor([[0.0, 9.0]]), ["a"], real=False)
    metric.reset()
    metric.update(torch.tensor([[0.0, 0.0]]), ["a"], real=False)
    assert metric.compute()["kl_exact"] == pytest.approx(0.0, abs=1e-12)
