"""Windowed decoding: independent of how latents arrive, and the whole where windows have no part in it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import make_decoder, make_vae, make_vocoder

from musiccm.long_form import DirectDecoder, PieceDecoder, encode_piece, piece_decoder
from musiccm.models.codec import LatentCodec

WINDOW = 8


@pytest.fixture(scope="module")
def codec() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(make_vae(), make_vocoder())


@pytest.fixture(scope="module")
def z(codec: LatentCodec) -> torch.Tensor:
    return torch.randn(4, 29, 4, generator=torch.Generator().manual_seed(1))


def test_the_vocoder_hears_no_further_than_its_context(codec: LatentCodec) -> None:
    """By gradients: which mel frames does the sound of frame 40 depend on?"""
    mel = torch.randn(1, 80, 64, requires_grad=True)
    codec.vocode(mel)[0, 40 * 160 : 41 * 160].square().sum().backward()
    assert mel.grad is not None
    heard = torch.nonzero(mel.grad.abs().sum((0, 2)))[:, 0]
    reach = max(40 - int(heard.min()), int(heard.max()) - 40)
    assert reach <= codec.vocoder_context <= reach + 8


def test_one_window_is_plain_decoding(codec: LatentCodec, z: torch.Tensor) -> None:
    with torch.no_grad():
        plain = codec.decode(z[None, :, :WINDOW])[0]
    assert torch.equal(PieceDecoder(codec, WINDOW, WINDOW).push(z[:, :WINDOW]), plain)


def test_chunks_of_the_vocoder_are_the_whole(codec: LatentCodec, z: torch.Tensor) -> None:
    """The definition written out: windows of 8 that share 2, half a frame cut on either side, a linear fade between."""
    starts, per = [0, 6, 12, 18, 21], 16
    ramp = torch.linspace(-0.5, 1.5, 33)[:-1] + 1 / 32
    total, mel = torch.zeros(29 * per), torch.zeros(29 * per, 64)
    with torch.no_grad():
        for start in starts:
            weight = torch.ones(WINDOW * per)
            weight[:32] = ramp.clamp(0, 1)
            weight[-32:] = ramp.flip(0).clamp(0, 1)
            weight[:32] = 1 if start == 0 else weight[:32]
            weight[-32:] = 1 if start == 21 else weight[-32:]
            here = slice(start * per, (start + WINDOW) * per)
            total[here] += weight
            mel[here] += weight[:, None] * codec.decode_mel(z[None, :, start : start + WINDOW])[0]
        whole = codec.vocode((mel / total[:, None])[None])[0]
    torch.testing.assert_close(PieceDecoder(codec, WINDOW, 29).push(z), whole, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def fast() -> LatentCodec:
    torch.manual_seed(0)
    return LatentCodec(make_vae(), latent_patch=2, decoder=make_decoder())


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 29), max_size=5), st.integers(1, 29), st.integers(1, 12))
def test_the_fast_decoder_in_chunks_is_the_whole(
    fast: LatentCodec, cuts: list[int], length: int, window: int
) -> None:
    z = torch.randn(16, length, 2, generator=torch.Generator().manual_seed(length))
    with torch.no_grad():
        whole = fast.decode(z[None])[0]
    borders = sorted({0, length, *(cut for cut in cuts if cut < length)})
    decoder = DirectDecoder(fast, window, length)
    parts = [decoder.push(z[:, a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)
    assert len(whole) == length * 5120


def test_without_end_the_fast_decoder_is_late_by_its_context_alone(fast: LatentCodec) -> None:
    z = torch.randn(16, 60, 2, generator=torch.Generator().manual_seed(0))
    decoder = piece_decoder(fast, WINDOW, None)
    sound = torch.cat([decoder.push(z[:, i : i + 3]) for i in range(0, 60, 3)])
    assert isinstance(decoder, DirectDecoder) and len(sound) == (60 - fast.decoder_context) * 5120
    assert decoder._z is not None and decoder._z.shape[1] <= 2 * fast.decoder_context
    with torch.no_grad():
        torch.testing.assert_close(sound, fast.decode(z[None])[0, : len(sound)], rtol=0, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 29), max_size=5), st.integers(WINDOW, 29))
def test_the_sound_does_not_depend_on_how_latents_arrive(
    codec: LatentCodec, z: torch.Tensor, cuts: list[int], length: int
) -> None:
    whole = PieceDecoder(codec, WINDOW, length).push(z[:, :length])
    borders = sorted({0, length, *(cut for cut in cuts if cut < length)})
    decoder = PieceDecoder(codec, WINDOW, length)
    parts = [decoder.push(z[:, a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    assert torch.equal(torch.cat(parts), whole) and len(whole) == length * 2560


def test_windows_decoded_at_once_give_the_same(codec: LatentCodec, z: torch.Tensor) -> None:
    one, four = (PieceDecoder(codec, WINDOW, 29, batch).push(z) for batch in (1, 4))
    torch.testing.assert_close(four, one, rtol=0, atol=1e-5)


def test_without_end_the_decoder_holds_little(codec: LatentCodec, z: torch.Tensor) -> None:
    decoder, held = PieceDecoder(codec, WINDOW, None), []
    sound = torch.cat([decoder.push(z[:, 3 * (i % 9) : 3 * (i % 9) + 3]) for i in range(40)])
    for _ in range(20):
        decoder.push(z[:, :3])
        latents, mel, spoken = decoder.mels._z, decoder.mels._mel, decoder._mel
        assert latents is not None and mel is not None and spoken is not None
        held.append(latents.shape[1] + (len(mel) + len(spoken)) / 16)
    assert max(held) <= 4 * WINDOW and len(sound) > 100 * 2560


def test_long_encoding_is_windowed_and_exact_where_windows_are_alone(codec: LatentCodec) -> None:
    mel = torch.randn(29 * 16, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        first = codec.normalise(codec.encode(mel[None, : WINDOW * 16])[0])[0]
        last = codec.normalise(codec.encode(mel[None, -WINDOW * 16 :])[0])[0]
    whole = encode_piece(codec, mel, WINDOW)
    assert whole.shape == (4, 29, 4)
    torch.testing.assert_close(whole[:, :6], first[:, :6], rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[:, -2:], last[:, -2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(encode_piece(codec, mel[: WINDOW * 16], WINDOW), first)
