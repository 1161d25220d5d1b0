"""Residual vector quantisation of a joint embedding: what the language model reads of a caption, or of sound."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from musiccm.errors import MusiccmError


class ResidualQuantizer(nn.Module):
    """A vector as codes, level by level: each level's codebook is of what the levels before it left.

    Args:
        levels: Codes of a vector.
        codebook: Entries of each level.
        width: Width of a vector.
    """

    codebooks_QKD: Tensor

    def __init__(self, levels: int, codebook: int, width: int) -> None:
        super().__init__()
        self.register_buffer("codebooks_QKD", torch.zeros(levels, codebook, width))

    def encode(self, x_BD: Tensor) -> Tensor:
        """Codes of vectors.

        Args:
            x_BD: The vectors.

        Returns:
            [B, Q], int64: at each level the entry nearest to the residual.

        Raises:
            MusiccmError: They have another width, or are not finite.
        """
        _, _, width = self.codebooks_QKD.shape
        if x_BD.dim() != 2 or x_BD.shape[1] != width or not torch.isfinite(x_BD).all():
            raise MusiccmError(f"joint embedding: expected finite vectors [B, {width}], found shape "
                               f"{tuple(x_BD.shape)}" + ("" if x_BD.dim() == 2 and x_BD.shape[1] != width
                                                         else " or values that are not finite"))
        residual_BD, codes = x_BD.float(), []
        for entries_KD in self.codebooks_QKD:
            scores_BK = residual_BD @ entries_KD.T - entries_KD.square().sum(1) / 2
            codes.append(scores_BK.argmax(dim=1))
            residual_BD = residual_BD - entries_KD[codes[-1]]
        return torch.stack(codes, dim=1)

    def decode(self, codes_BQ: Tensor) -> Tensor:
        """The sum of the entries of codes; of fewer levels than there are, that of the first ones.

        Args:
            codes_BQ: Codes, of the first level and the following ones.

        Returns:
            [B, D].
        """
        return torch.stack([self.codebooks_QKD[q, codes_BQ[:, q]] for q in range(codes_BQ.shape[1])]).sum(0)

    def fit(self, x_ND: Tensor, seed: int = 0) -> None:
        """Fit all levels to vectors: k-means of each level's residuals (scikit-learn's `KMeans`).

        Args:
            x_ND: The vectors, at least as many as a level has entries.
            seed: Of the first centres.

        Raises:
            MusiccmError: There are fewer different vectors.
        """
        from sklearn.cluster import KMeans

        levels, codebook, _ = self.codebooks_QKD.shape
        residual_ND = x_ND.detach().cpu().float()
        if (distinct := len(residual_ND.unique(dim=0))) < codebook:
            raise MusiccmError(f"joint embedding: {distinct} different vectors for {codebook} codes; lower "
                               "prefix_codebook, or take more clips")
        for level in range(levels):
            found = KMeans(codebook, n_init=1, max_iter=50, random_state=seed + level).fit(residual_ND.numpy())
            entries_KD = torch.from_numpy(found.cluster_centers_).float()
            residual_ND = residual_ND - entries_KD[torch.from_numpy(found.labels_).long()]
            self.codebooks_QKD[level] = entries_KD.to(self.codebooks_QKD.device)
