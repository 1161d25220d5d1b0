"""The tagger: any length, files, groups, and that it can learn."""

from pathlib import Path

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.models.tagger import Tagger, TaggerConfig

TAGS = ["drums:none", "drums:rock", "tempo:fast", "tempo:slow", "calm"]


@pytest.fixture
def tagger() -> Tagger:
    torch.manual_seed(0)
    return Tagger({"tags": TAGS, "width": 16, "dilations": [1, 2], "stem_widths": [4, 4, 4]}).eval()


@pytest.mark.parametrize("frames", [1, 37, 200])
def test_any_length(tagger: Tagger, frames: int, device: str) -> None:
    mel = torch.randn(2, frames, 64, generator=torch.Generator().manual_seed(1))
    expected = tagger(mel)
    embedding, logits = (found.cpu() for found in tagger.to(device)(mel.to(device)))
    torch.testing.assert_close((embedding, logits), expected, rtol=1e-4, atol=1e-4)
    assert embedding.shape == (2, 128) and logits.shape == (2, 5)
    assert torch.isfinite(logits).all() and (embedding >= 0).all()


def test_groups_are_columns(tagger: Tagger) -> None:
    assert tagger.groups == {"drums": [0, 1], "tempo": [2, 3]}


def test_default_size() -> None:
    count = sum(p.numel() for p in Tagger(TaggerConfig(tags=TAGS)).parameters())
    assert 200_000 < count < 300_000


def test_files_round_trip(tagger: Tagger, tmp_path: Path) -> None:
    tagger.save_pretrained(tmp_path)
    again = Tagger.from_pretrained(tmp_path)
    mel = torch.randn(1, 64, 64)
    assert again.tags == TAGS
    assert all(torch.equal(a, b) for a, b in zip(tagger(mel), again(mel), strict=True))


def test_spread_over_time_is_heard(tagger: Tagger) -> None:
    """The same frames in another order give another answer: rhythm, not only spectrum."""
    pulses = torch.full((1, 64, 64), -8.0)
    pulses[:, ::8] = 0.0
    block = torch.full((1, 64, 64), -8.0)
    block[:, :8] = 0.0
    assert not torch.allclose(tagger(pulses)[1], tagger(block)[1], atol=1e-3)


def test_bad_input_is_refused(tagger: Tagger, tmp_path: Path) -> None:
    with pytest.raises(MusiccmError, match="64 mel bins"):
        tagger(torch.zeros(1, 10, 80))
    with pytest.raises(MusiccmError, match="tags"):
        Tagger({})
    with pytest.raises(MusiccmError, match="colour"):
        Tagger({"tags": TAGS, "colour": 1})
    with pytest.raises(MusiccmError, match=r"config\.json"):
        Tagger.from_pretrained(tmp_path)
