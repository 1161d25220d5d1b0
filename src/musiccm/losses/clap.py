"""The loss of CLAP tuning: a clip's embedding near that of its caption and that of the real clip."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def clap_loss(
    fake_BD: Tensor, text_BD: Tensor, real_BD: Tensor, weight_B: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`E w (2 - cos(fake, text) - cos(fake, real))`, of ConsistencyTTA's last stage (arXiv 2309.10740).

    Args:
        fake_BD: CLAP's embeddings of the student's clips, attached to the student's graph.
        text_BD: of their captions; detached here.
        real_BD: of the real clips; detached here.
        weight_B: weight of each item; None for 1.

    Returns:
        `(total, parts)`. Parts: `loss_clap` (the total), `clap_text` and `clap_real`, the mean cosines, unweighted.
    """
    fake_BD = fake_BD.float()
    to_text_B = F.cosine_similarity(fake_BD, text_BD.detach().float(), dim=1)
    to_real_B = F.cosine_similarity(fake_BD, real_BD.detach().float(), dim=1)
    loss_B = 2.0 - to_text_B - to_real_B
    total = (loss_B if weight_B is None else weight_B.detach().to(loss_B) * loss_B).mean()
    parts = {"loss_clap": total, "clap_text": to_text_B.mean(), "clap_real": to_real_B.mean()}
    return total, {name: part.detach() for name, part in parts.items()}
