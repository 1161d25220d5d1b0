"""AudioMAE's checkpoint to the feature network of the adversarial loss."""

from __future__ import annotations

from pathlib import Path

from musiccm.audio.mel import MelConfig
from musiccm.errors import MusiccmError
from musiccm.models.convert.converted import Converted, count_below, weight
from musiccm.models.convert.reading import read_original, tensors_of
from musiccm.models.features import DECODER_KEYS, ViTConfig, ViTFeatures

#: Patches along frequency of AudioMAE's 128 Kaldi bins; its 1024 frames give 64 along time.
BINS = 128


def audiomae_from_original(path: str | Path, source: MelConfig) -> tuple[ViTFeatures, list[str], list[str]]:
    """Read a pre-trained AudioMAE's encoder.

    Args:
        path: The file, a dict with `model`.
        source: The mel that the network will look at.

    Returns:
        The network, the names of weights that it has no use for, the decoder's, and the keys of what is no weight.

    Raises:
        MusiccmError: It is not such a file, or the fine-tuned kind, which lacks the norm of the tokens.
    """
    tensors, ignored = tensors_of(read_original(path), path, "model", "state_dict")
    what = str(path)
    if "fc_norm.weight" in tensors:
        raise MusiccmError(f"{path}: is the fine-tuned AudioMAE, which normalises the mean of its tokens and not the "
                           "tokens; take the pre-trained one")
    patches = weight(tensors, "patch_embed.proj.weight", what)
    width, patch = patches.shape[0], patches.shape[2]
    positions = weight(tensors, "pos_embed", what).shape[1] - 1
    depth = count_below(tensors, "blocks.")
    config = ViTConfig(
        frames=positions // (BINS // patch) * patch, bins=BINS, patch_size=patch, width=width, depth=depth,
        heads=max(1, width // 64), input="kaldi",
        mlp_ratio=weight(tensors, "blocks.0.mlp.fc1.weight", what).shape[0] / width,
    )
    dropped = [name for name in tensors if name.startswith(DECODER_KEYS)]
    state = {name: value for name, value in tensors.items() if name not in dropped}
    # Adapter and statistics are computed from the configuration, so the ViT alone takes weights.
    features = ViTFeatures(config, source)
    converted = Converted({}, state, dropped)
    features.vit = converted.build(lambda _: ViTFeatures(config, source).vit, what)
    return features.eval().requires_grad_(False), dropped, ignored
