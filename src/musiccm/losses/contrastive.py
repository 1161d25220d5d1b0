"""Text-audio contrastive loss and the retrieval rate that measures it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce(text_BD: Tensor, audio_BD: Tensor, scale: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
    """Symmetric InfoNCE over a batch of pairs (CLIP, Radford et al. 2021, figure 3).

    Args:
        text_BD: unit-length text embeddings, [B, D].
        audio_BD: unit-length audio embeddings, [B, D]; row b belongs to row b of the text.
        scale: inverse temperature that multiplies the cosines.

    Returns:
        The mean of both directions, and the parts `text_to_audio` and `audio_to_text`.
    """
    logits_BB = scale * text_BD @ audio_BD.T
    own = torch.arange(len(text_BD), device=text_BD.device)
    parts = {"text_to_audio": F.cross_entropy(logits_BB, own), "audio_to_text": F.cross_entropy(logits_BB.T, own)}
    return 0.5 * (parts["text_to_audio"] + parts["audio_to_text"]), parts


def recall_at_k(query_QD: Tensor, item_QD: Tensor, k: int) -> float:
    """Share of queries whose own item (same row) is among the k items of highest cosine.

    Ties count against the query, so that a collapsed embedding scores 0 and not 1.

    Args:
        query_QD: query embeddings, [Q, D].
        item_QD: item embeddings, [Q, D].
        k: how many of the best items are looked at.

    Returns:
        Recall in 0..1.
    """
    similarity_QQ = F.normalize(query_QD.double(), dim=-1) @ F.normalize(item_QD.double(), dim=-1).T
    own_Q1 = similarity_QQ.diagonal().unsqueeze(1)
    rivals_Q = (similarity_QQ >= own_Q1).sum(dim=1) - 1
    return (rivals_Q < k).double().mean().item()
