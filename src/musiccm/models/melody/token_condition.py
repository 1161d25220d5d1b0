"""What a renderer is told: a sequence of semantic tokens that covers its latents, or none."""

from __future__ import annotations

from musiccm.diffusion import AnyCondition, Condition
from musiccm.errors import MusiccmError


def check_tokens(
    condition: AnyCondition, frames: int, token_width: int, frames_per_token: int, network: str
) -> Condition:
    """Refuse what is no sequence of semantic tokens for so many frames.

    Args:
        condition: Tokens; an item without any has no condition.
        frames: Latent frames.
        token_width: Width of a token's vector, as the network takes it.
        frames_per_token: Latent frames that a token covers.
        network: Its name, for messages.

    Returns:
        The condition.

    Raises:
        MusiccmError: It has no tokens, others than the network takes, or not as many as cover the frames.
    """
    if not isinstance(condition, Condition) or condition.tokens_BLD is None or condition.mask_BL is None:
        raise MusiccmError(f"{network}: expected a condition of semantic tokens, found one without tokens")
    if condition.tokens_BLD.shape[-1] != token_width:
        raise MusiccmError(f"{network}: expected token vectors of width {token_width}, found "
                           f"{condition.tokens_BLD.shape[-1]}; the semantic tokenizer is another one")
    needed = -(-frames // frames_per_token)
    counts = condition.mask_BL.sum(1).tolist()
    if wrong := [count for count in counts if count not in (0, needed)]:
        raise MusiccmError(f"{network}: {frames} latent frames need {needed} semantic tokens, one for "
                           f"{frames_per_token} frames, or none for no condition; found {wrong[0]}")
    return condition
