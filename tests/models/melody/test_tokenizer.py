"""The semantic tokenizer: nearest centroids of standardised features, held to the network that gives these."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.models.melody.features import FeatureSource
from musiccm.models.melody.tokenizer import SemanticTokenizer, SemanticTokenizerConfig, tokenizer_of


class Levels(FeatureSource):
    """A token's features are the mean and the spread of its samples."""

    sample_rate_hz, frame_rate_hz, width = 16000, 25.0, 2

    def __init__(self, fingerprint: str = "one") -> None:
        super().__init__("tagger", fingerprint)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def frames(self, waveform_BS: Tensor) -> Tensor:
        parts = waveform_BS.unflatten(1, (-1, 640))
        return torch.stack([parts.mean(2), parts.std(2)], 2) * self.scale


def make(width: int = 2, source: FeatureSource | None = None) -> SemanticTokenizer:
    config = SemanticTokenizerConfig("tagger", "one", 2, 4, width)
    tokenizer = SemanticTokenizer(config, source)
    tokenizer.mean_F.copy_(torch.tensor([1.0, 2.0]))
    tokenizer.std_F.copy_(torch.tensor([2.0, 4.0]))
    tokenizer.centroids_KD.copy_(torch.tensor([[0.0, 0], [3, 0], [0, 3], [-1, -1]])[:, :width])
    if tokenizer.projection_FD is not None:
        tokenizer.projection_FD.copy_(torch.tensor([[0.6], [0.8]]))
    return tokenizer


def test_the_nearest_centroid_of_standardised_features() -> None:
    tokenizer = make()
    # (x - mean) / std of 1, 2 is 0, 0; of 7, 2 is 3, 0; of 1, 14 is 0, 3; of -1, -2 is -1, -1
    features = torch.tensor([[[1.0, 2], [7, 2]], [[1, 14], [-1, -2]]])
    ids = tokenizer.encode(features)
    assert ids.tolist() == [[0, 1], [2, 3]] and ids.dtype == torch.int64
    x = torch.randn(7, 9, 2) * 4
    distances = ((tokenizer.standardise(x)[..., None, :] - tokenizer.centroids_KD) ** 2).sum(-1)
    assert torch.equal(tokenizer.encode(x), distances.argmin(-1))
    torch.testing.assert_close(make(1).standardise(features)[0, 1], torch.tensor([3 * 0.6 + 0 * 0.8]))


def test_vectors_are_the_centroids_of_ids_and_others_are_refused() -> None:
    tokenizer = make()
    found = tokenizer.vectors(torch.tensor([[1, 3, 0]]))
    assert found.tolist() == [[[3, 0], [-1, -1], [0, 0]]] and found.shape == (1, 3, tokenizer.width)
    assert torch.equal(tokenizer.encode(found * tokenizer.std_F + tokenizer.mean_F), torch.tensor([[1, 3, 0]]))
    for bad in (torch.tensor([[4]]), torch.tensor([[-1]]), torch.zeros(1, 1)):
        with pytest.raises(MusiccmError, match="expected ids from 0 to 3"):
            tokenizer.vectors(bad)


def test_ids_of_sound_are_25_a_second_whatever_else_is_in_the_batch() -> None:
    tokenizer = make(source=Levels())
    loud = torch.randn(3, 16000 * 2) * torch.rand(3, 50).mul(14).repeat_interleave(640, 1) + 1
    ids = tokenizer.ids(loud, 16000)
    assert ids.shape == (3, 50) and len(ids.unique()) > 1
    assert all(torch.equal(tokenizer.ids(loud[n : n + 1], 16000)[0], ids[n]) for n in range(3))
    with pytest.raises(MusiccmError, match="no whole number of tokens"):
        tokenizer.ids(loud[:, :-1], 16000)
    with pytest.raises(MusiccmError, match="was read without the tagger"):
        make().ids(loud, 16000)


def test_it_is_read_back_and_held_to_its_features(tmp_path: Path) -> None:
    tokenizer = make(1)
    tokenizer.save_pretrained(tmp_path / "semantic_tokenizer")
    read = SemanticTokenizer.from_pretrained(tmp_path / "semantic_tokenizer", Levels())
    assert read.fingerprint == tokenizer.fingerprint == tokenizer_of(tmp_path).fingerprint
    assert not [name for name in read.state_dict() if "scale" in name], "the source's weights are not its own"
    x = torch.randn(30, 2)
    assert torch.equal(read.encode(x), tokenizer.encode(x))
    tokenizer.centroids_KD[2] += 1e-3
    assert read.fingerprint != tokenizer.fingerprint
    with pytest.raises(MusiccmError, match="fitted to another tagger .*one, found two"):
        SemanticTokenizer.from_pretrained(tmp_path / "semantic_tokenizer", Levels("two"))
    other = Levels()
    other.layer = 3
    with pytest.raises(MusiccmError, match="fitted to features"):
        read.use(other)
    with pytest.raises(MusiccmError, match="no semantic tokenizer here"):
        SemanticTokenizer.from_pretrained(tmp_path / "none")
    with pytest.raises(MusiccmError, match="no bundle here"):
        tokenizer_of(tmp_path / "none")
