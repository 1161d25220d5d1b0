"""Random weights of the published networks' true shapes, and sound to hear them with; each made once."""

from __future__ import annotations

import math
from collections import OrderedDict
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

RATES = {16000: (512, 160, 8000), 32000: (1024, 320, 14000)}


def original_cnn14(rate_hz: int) -> nn.Module:
    """audioldm_eval's class, random weights; its constructor would download the published ones by wget."""
    models = pytest.importorskip("audioldm_eval.feature_extractors.panns.models")
    n_fft, hop, highest = RATES[rate_hz]
    with (
        mock.patch.object(models.os.path, "exists", return_value=True),
        mock.patch.object(models.torch, "load", return_value={"model": {}}),
        mock.patch.object(models.Cnn14, "load_state_dict"),
        # The fixture below fills the weights: drawing 80 million twice takes seconds.
        mock.patch.object(models, "init_layer"),
        mock.patch.object(nn.Conv2d, "reset_parameters"),
        mock.patch.object(nn.Linear, "reset_parameters"),
    ):
        return models.Cnn14(features_list=["2048", "logits"], sample_rate=rate_hz, window_size=n_fft, hop_size=hop,
                            mel_bins=64, fmin=50, fmax=highest, classes_num=527).eval()


@pytest.fixture(scope="session")
def cnn14_originals() -> dict[int, nn.Module]:
    """Both rates; the weights behind the front end are one random set, whose activations neither vanish nor explode."""
    torch.manual_seed(3)
    low, high = original_cnn14(16000), original_cnn14(32000)
    with torch.no_grad():
        for module in low.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                bound = math.sqrt(6 / module.weight[0].numel())
                module.weight.uniform_(-bound, bound)
                if module.bias is not None:
                    module.bias.uniform_(-0.2, 0.2)
            elif isinstance(module, nn.BatchNorm2d):
                for value, mean, spread in ((module.weight, 1, 0.2), (module.bias, 0, 0.2),
                                            (module.running_mean, 0, 0.2), (module.running_var, 1.5, 0.2)):
                    value.copy_(mean + spread * torch.randn(len(value)).clamp(-3, 3))
        low.bn0.running_mean.fill_(-30.0)
        low.bn0.running_var.fill_(300.0)
        shared = {name: value for name, value in low.state_dict().items() if "extractor" not in name}
        high.load_state_dict(shared, strict=False)
    return {16000: low, 32000: high}


@pytest.fixture(scope="session")
def cnn14_checkpoint(cnn14_originals) -> dict:
    """The published file's content: weights, iteration, and the state of PANN's sampler of balanced mixup batches."""
    sampler = {
        "indexes1_per_class": [np.arange(5), np.array([7, 3])], "queue1": [1, 2], "pointers1_of_classes": [0, 4],
        "finished_epochs_per_class": [np.int64(3), 1],
    }
    return {"iteration": 660000, "model": OrderedDict(cnn14_originals[16000].state_dict()), "sampler": sampler}


@pytest.fixture(scope="session")
def pann(cnn14_checkpoint):
    from musiccm.embedders.cnn14 import PannEmbedder

    return PannEmbedder("pann", cnn14_checkpoint)


@pytest.fixture(scope="session")
def vggish_state() -> dict[str, torch.Tensor]:
    """Random weights of VGGish's shapes under torchvggish's names."""
    generator = torch.Generator().manual_seed(4)
    shapes = {f"features.{index}": (out, inputs, 3, 3) for index, inputs, out in
              ((0, 1, 64), (3, 64, 128), (6, 128, 256), (8, 256, 256), (11, 256, 512), (13, 512, 512))}
    shapes |= {"embeddings.0": (4096, 12288), "embeddings.2": (4096, 4096), "embeddings.4": (128, 4096)}
    state = {}
    for name, shape in shapes.items():
        std = math.sqrt(2 / math.prod(shape[1:]))
        state[f"{name}.weight"] = torch.empty(shape).normal_(0, std, generator=generator)
        state[f"{name}.bias"] = torch.empty(shape[0]).normal_(0, 0.1, generator=generator)
    return state


@pytest.fixture(scope="session")
def vgg(vggish_state):
    from musiccm.embedders.vggish import VggishEmbedder

    return VggishEmbedder(vggish_state)
