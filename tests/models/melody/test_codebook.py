"""Fitting a codebook: known clusters come back, components are PCA's, and a run that was ended goes on to the bit."""

from __future__ import annotations

import io

import pytest
import torch
from sklearn.decomposition import PCA

from musiccm.errors import MusiccmError
from musiccm.models.melody.codebook import CodebookFitter


def gaussians(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points of ten clusters far apart, their centres, and which is whose."""
    centres_KF = 20 * torch.nn.functional.one_hot(torch.arange(10), 12).float() + torch.arange(12.0)
    generator = torch.Generator().manual_seed(seed)
    which_N = torch.randint(10, (count,), generator=generator)
    return centres_KF[which_N] + 0.1 * torch.randn(count, 12, generator=generator), centres_KF, which_N


def fitted(fitter: CodebookFitter, first: int = 0, last: int = 30) -> CodebookFitter:
    for step in range(first, last):
        points, _, _ = gaussians(200, step)
        if step < 5:
            fitter.measure(points)
        else:
            fitter.fit(points)
    return fitter


def test_separated_gaussians_are_found() -> None:
    found = fitted(CodebookFitter(10, seed=3)).tensors()
    centres_KF = gaussians(1)[1]
    centroids = found["centroids_KD"] * found["std_F"] + found["mean_F"]
    nearest = torch.cdist(centres_KF, centroids).min(1)
    assert sorted(nearest.indices.tolist()) == list(range(10)), "each cluster has a centroid of its own"
    assert nearest.values.max() < 0.1
    points, _, which = gaussians(500, 99)
    ids = torch.cdist((points - found["mean_F"]) / found["std_F"], found["centroids_KD"]).argmin(1)
    assert torch.equal(ids, nearest.indices[which])


def test_statistics_and_components_are_those_of_all_that_was_measured() -> None:
    points = torch.cat([gaussians(200, step)[0] for step in range(5)])
    points[:, 3] = 7.0
    fitter = CodebookFitter(10, width=4)
    for part in points.split(200):
        fitter.measure(part)
    fitter.fit(points)
    found = fitter.tensors()
    torch.testing.assert_close(found["mean_F"], points.mean(0), atol=1e-4, rtol=0)
    std = points.std(0, unbiased=False)
    std[3] = 1.0  # a constant is left as it is
    torch.testing.assert_close(found["std_F"], std, atol=1e-4, rtol=1e-4)
    theirs = torch.from_numpy(PCA(4, svd_solver="full").fit(((points - points.mean(0)) / std).numpy()).components_)
    # the same subspace, whatever the basis of equal variances in it
    ours = found["projection_FD"]
    torch.testing.assert_close(ours @ ours.T, theirs.T @ theirs, atol=1e-3, rtol=0)
    assert (ours.gather(0, ours.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize("ended", [3, 5, 17])
def test_a_run_that_goes_on_gives_the_same_bits(ended: int) -> None:
    whole = fitted(CodebookFitter(16, width=6, seed=1)).tensors()
    kept = io.BytesIO()
    torch.save(fitted(CodebookFitter(16, width=6, seed=1), last=ended).state_dict(), kept)
    kept.seek(0)
    # once something was drawn, the random state is the other's, whatever the seed
    resumed = CodebookFitter(16, width=6, seed=8 if ended > 5 else 1)
    resumed.load_state_dict(torch.load(kept, weights_only=True))
    again = fitted(resumed, first=ended).tensors()
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_too_little_is_refused() -> None:
    with pytest.raises(MusiccmError, match="nothing was measured"):
        CodebookFitter(4).fit(torch.randn(10, 3))
    fitter = CodebookFitter(64)
    fitter.measure(torch.randn(50, 3))
    with pytest.raises(MusiccmError, match=r"first batch has 50 frames, and 64 centroids .* data\.batch_size"):
        fitter.fit(torch.randn(50, 3))
    with pytest.raises(MusiccmError, match="not fitted yet"):
        fitter.tensors()
    wide = CodebookFitter(4, width=3)
    wide.measure(torch.randn(50, 3))
    with pytest.raises(MusiccmError, match="width is 3, of 3 features"):
        wide.fit(torch.randn(50, 3))
