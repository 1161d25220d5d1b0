"""Fitting a semantic codebook: statistics of features, their principal components, then mini-batch k-means."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from musiccm.errors import MusiccmError

#: Below this share of the largest spread a feature is a constant, such as a channel that a ReLU never lets through.
_CONSTANT = 1e-6


class CodebookFitter:
    """Fits a tokenizer's numbers to features, batch by batch; its state can be kept, and taken up again to the bit.

    First `measure` batches, then `fit` others. The clusters are scikit-learn's `MiniBatchKMeans`: k-means++ on the
    first batch, and centres that get too few frames begin again at a frame.

    Args:
        codebook: Centroids.
        width: Principal components to keep of the standardised features; None for the features themselves.
        seed: Of the first centres, and of those that begin again.
    """

    def __init__(self, codebook: int, width: int | None = None, seed: int = 0) -> None:
        from sklearn.cluster import MiniBatchKMeans

        self.codebook, self.width = codebook, width
        self.clusters = MiniBatchKMeans(n_clusters=codebook, random_state=seed, n_init=1, compute_labels=False)
        self.count = 0
        self.sum_F = self.products_FF = torch.zeros(0, dtype=torch.float64)
        self.mean_F = self.std_F = torch.zeros(0)
        self.projection_FD: Tensor | None = None

    @property
    def started(self) -> bool:
        """Whether there are clusters yet."""
        return hasattr(self.clusters, "cluster_centers_")

    def measure(self, features_NF: Tensor) -> None:
        """Add features to the statistics."""
        x = features_NF.detach().cpu().double()
        if not self.count:
            self.sum_F, self.products_FF = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
        self.count += len(x)
        self.sum_F = self.sum_F + x.sum(0)
        self.products_FF = self.products_FF + x.T @ x

    def _settle(self) -> None:
        """Turn the statistics into mean, deviation and components."""
        if not self.count:
            raise MusiccmError("semantic codebook: nothing was measured before it is fitted")
        mean = self.sum_F / self.count
        covariance = self.products_FF / self.count - torch.outer(mean, mean)
        std = covariance.diagonal().clamp(min=0).sqrt()
        std = torch.where(std > _CONSTANT * std.max(), std, torch.ones_like(std))
        if self.width is not None:
            if not 0 < self.width < len(mean):
                raise MusiccmError(f"semantic codebook: width is {self.width}, of {len(mean)} features; expected "
                                   "fewer, or none to keep them as they are")
            _, vectors = torch.linalg.eigh(covariance / torch.outer(std, std))
            kept = vectors.flip(1)[:, : self.width]
            # a component's sign is nobody's choice: its largest entry is positive
            largest = kept.gather(0, kept.abs().argmax(0, keepdim=True))
            self.projection_FD = (kept * largest.sign()).float()
        self.mean_F, self.std_F = mean.float(), std.float()

    def fit(self, features_NF: Tensor) -> float | None:
        """Move the centroids by one batch.

        Args:
            features_NF: Features, the first time at least as many as there are centroids.

        Returns:
            Mean squared distance of the batch to its nearest centroids before they move, over the width; 1 or less
            where all components are kept. None for the first batch, which the centroids begin with.

        Raises:
            MusiccmError: The first batch has too few frames, or nothing was measured.
        """
        if not self.mean_F.numel():
            self._settle()
        x = (features_NF.detach().cpu().float() - self.mean_F) / self.std_F
        x = x if self.projection_FD is None else x @ self.projection_FD
        distance = None
        if self.started:
            centroids = torch.from_numpy(self.clusters.cluster_centers_)
            distance = torch.cdist(x, centroids).amin(1).square().mean().item() / x.shape[1]
        elif len(x) < self.codebook:
            raise MusiccmError(f"semantic codebook: the first batch has {len(x)} frames, and {self.codebook} centroids "
                               "begin at frames of it; raise data.batch_size")
        self.clusters.partial_fit(np.ascontiguousarray(x.numpy()))
        return distance

    def tensors(self) -> dict[str, Tensor]:
        """What a `SemanticTokenizer` keeps, by the names of its buffers.

        Raises:
            MusiccmError: There are no clusters yet.
        """
        if not self.started:
            raise MusiccmError("semantic codebook: is not fitted yet")
        found = {"mean_F": self.mean_F, "std_F": self.std_F,
                 "centroids_KD": torch.from_numpy(self.clusters.cluster_centers_).float().clone()}
        return found if self.projection_FD is None else {**found, "projection_FD": self.projection_FD}

    def state_dict(self) -> dict[str, Any]:
        """All that goes on: tensors and plain values, which a checkpoint is read for."""
        state: dict[str, Any] = {
            "count": self.count, "sum_F": self.sum_F, "products_FF": self.products_FF, "mean_F": self.mean_F,
            "std_F": self.std_F, "projection_FD": self.projection_FD,
        }
        if self.started:
            own = {key: value for key, value in vars(self.clusters).items() if key not in self.clusters.get_params()}
            random = own.pop("_random_state").get_state(legacy=False)
            state["clusters"] = {
                key: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else _plain(value)
                for key, value in own.items() if isinstance(value, np.ndarray | np.generic | int | float)
            }
            state["random"] = {
                "key": torch.from_numpy(random["state"]["key"].astype(np.int64)), "pos": int(random["state"]["pos"]),
                "has_gauss": int(random["has_gauss"]), "gauss": float(random["gauss"]),
            }
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        for key in ("count", "sum_F", "products_FF", "mean_F", "std_F", "projection_FD"):
            setattr(self, key, state[key])
        if "clusters" not in state:
            return
        for key, value in state["clusters"].items():
            setattr(self.clusters, key, value.cpu().numpy().copy() if isinstance(value, Tensor) else value)
        random = state["random"]
        generator = np.random.RandomState()
        generator.set_state(("MT19937", random["key"].cpu().numpy().astype(np.uint32), random["pos"],
                             random["has_gauss"], random["gauss"]))
        self.clusters._random_state = generator


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
