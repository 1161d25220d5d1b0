"""The grid of semantic tokens: lengths on it, and features brought to it."""

from __future__ import annotations

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.models.melody.token_rate import to_token_rate, token_count


@pytest.mark.parametrize(("samples", "rate_hz", "tokens"), [(81920, 16000, 128), (240000, 24000, 250), (640, 16000, 1),
                                                           (44100, 44100, 25)])
def test_lengths_on_the_grid(samples: int, rate_hz: int, tokens: int) -> None:
    assert token_count(samples, rate_hz) == tokens


@pytest.mark.parametrize(("samples", "rate_hz"), [(81921, 16000), (639, 16000), (0, 16000), (30720 + 100, 24000)])
def test_lengths_off_the_grid_are_refused_with_the_next_one(samples: int, rate_hz: int) -> None:
    unit = rate_hz // 25
    with pytest.raises(MusiccmError, match=f"next length on their grid is {(samples // unit + 1) * unit} samples"):
        token_count(samples, rate_hz)


def test_faster_features_are_averaged_over_each_token() -> None:
    features = torch.randn(2, 12, 3)
    pairs, triples = to_token_rate(features, 50.0, 6), to_token_rate(features, 75.0, 4)
    torch.testing.assert_close(pairs, features.unflatten(1, (6, 2)).mean(2))
    torch.testing.assert_close(triples, features.unflatten(1, (4, 3)).mean(2))
    # 2.5 frames a token: two whole ones, and half of the one between two tokens
    halves = to_token_rate(features, 62.5, 4)
    torch.testing.assert_close(halves[:, 0], (features[:, 0] + features[:, 1] + features[:, 2] / 2) / 2.5)
    torch.testing.assert_close(halves[:, 1], (features[:, 2] / 2 + features[:, 3] + features[:, 4]) / 2.5)
    # a constant stays one at any ratio, and the mean is kept where tokens and frames end together
    torch.testing.assert_close(to_token_rate(torch.ones(1, 87, 1), 86.1328125, 25), torch.ones(1, 25, 1))
    torch.testing.assert_close(to_token_rate(features, 75.0, 4).mean(1), features.mean(1))


def test_slower_features_lie_on_the_line_between_two_frames() -> None:
    frames = torch.arange(8, dtype=torch.float32)[None, :, None]
    # 6.25 Hz: a frame is four tokens; token l is centred at (l + 1/2) / 4 - 1/2 frames, held at both ends
    expected = ((torch.arange(32) + 0.5) / 4 - 0.5).clamp(0, 7)
    torch.testing.assert_close(to_token_rate(frames, 6.25, 32)[0, :, 0], expected)


def test_features_at_the_rate_of_tokens_are_taken_as_they_are_and_too_few_refused() -> None:
    features = torch.randn(1, 130, 4)
    assert torch.equal(to_token_rate(features, 25.0, 128), features[:, :128])
    with pytest.raises(MusiccmError, match="130 frames at 25 Hz do not reach to the end of 140 tokens"):
        to_token_rate(features, 25.0, 140)
