"""Pieces of a model that plans tokens: what is planned, what a window holds, streams, changes of text, and edits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_melody import FRAMES, PER, SAMPLES, TOKENS, build_random_melody

from musiccm.audio.original import Original
from musiccm.errors import MusiccmError
from musiccm.long_form import SourceClip, encode_sound
from musiccm.models.melody.conditioner import SemanticConditioner
from musiccm.pipeline import Pipeline
from musiccm.samplers import prompt_seeds, sample_noise
from musiccm.samplers.held import fill

PROMPT, OTHER = "slow organ chords", "a fast marimba tune with steady drums"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline.from_pretrained(build_random_melody(tmp_path_factory.mktemp("melody")))


@pytest.fixture
def planner(model: Pipeline) -> SemanticConditioner:
    assert isinstance(model.conditioner, SemanticConditioner)
    return model.conditioner


def written(planner: SemanticConditioner, prompt: str, count: int, seed: int, before: list[int] | None = None) -> list:
    """Tokens as the language model itself writes them."""
    assert planner.lm is not None
    prefix = planner.lm.prefix(planner.joint.text([prompt]))  # type: ignore[arg-type]
    start = None if before is None else torch.tensor([before])
    return planner.lm.generate(prefix, count, [seed], start_BL=start)[0].tolist()


def test_a_clip_is_its_prompt_and_its_seed(model: Pipeline, planner: SemanticConditioner) -> None:
    together, alone = model([PROMPT, OTHER], 3, seed=[4, 5]), model(OTHER, 3, seed=[5])
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-5)
    assert (model(OTHER, 3, seed=[6]) - alone).abs().max() > 1e-2
    (noise_seed,) = prompt_seeds([5], 1)
    cond = planner.prompts([OTHER], [noise_seed])
    ids = written(planner, OTHER, TOKENS, noise_seed)
    torch.testing.assert_close(cond.tokens_BLD, planner.tokenizer.vectors(torch.tensor([ids])))
    # and rendered under these, guided by no tokens at all
    expected = model.stepper(3).sample(cond, sample_noise([noise_seed], model.latent_shape))
    torch.testing.assert_close(model.codec.decode(expected)[0], alone[0], rtol=0, atol=1e-5)
    assert not planner.null(2).mask_BL.any()  # type: ignore[union-attr]
    # a piece of a clip's length is that clip
    torch.testing.assert_close(model.compose(OTHER, SAMPLES / 16000, 3, seed=[5]), alone[0], rtol=0, atol=1e-5)


def test_a_stream_is_the_piece_and_its_decoder_needs_no_fades(model: Pipeline) -> None:
    texts, seconds = [(0, PROMPT), (0.9, OTHER)], 1.7
    whole = model.compose(texts, seconds, 2, seed=7)
    assert len(whole) == 27200
    torch.testing.assert_close(torch.cat(list(model.stream(texts, seconds, 2, seed=7))), whole, rtol=0, atol=1e-5)
    plain = model.compose(PROMPT, seconds, 2, seed=7)
    # what lies before the windows that read of another text is the same music, but for what the decoder looks ahead
    same = int(0.64 * 16000) - model.codec.decoder_context * model.frame_samples
    torch.testing.assert_close(plain[:same], whole[:same], rtol=0, atol=1e-5)
    assert (plain - whole).abs().max() > 1e-2
    # three quarters held are more windows than a quarter
    calls = [len(list(model.stream(PROMPT, seconds, 2, overlap=share))) for share in (0.25, 0.75)]
    assert calls[0] < calls[1]


def test_tokens_are_planned_along_the_texts(model: Pipeline, planner: SemanticConditioner) -> None:
    texts = {0: PROMPT, 20: OTHER}
    writer = planner.writer(lambda number: (texts[0 if number < 20 else 20], 3))
    first = writer.ids(0, 16).tolist()
    assert first == written(planner, PROMPT, 16, 3)
    rest = writer.ids(8, 24).tolist()
    assert rest[:8] == first[8:]
    assert first[:8] + rest == [*written(planner, PROMPT, 20, 3), *rest[12:]]
    # a change of text goes on from what is there, and known tokens are told as they are
    known = planner.writer(lambda number: (OTHER, 3), {number: 5 for number in range(8)})
    assert known.ids(0, 8).tolist() == [5] * 8
    assert known.ids(0, 12).tolist()[8:] != written(planner, OTHER, 4, 3)
    same = planner.writer(lambda number: (OTHER, 3), dict.fromkeys(range(8), 5))
    assert same.ids(0, 12).tolist() == known.ids(0, 12).tolist()


def test_a_text_can_change_while_it_plays(model: Pipeline) -> None:
    stream = model.stream(PROMPT, 2.0, 2, seed=1)
    first = next(stream)
    time_s = stream.set_prompt(OTHER)
    assert time_s == FRAMES / 250  # a window is made
    whole = torch.cat([first, *stream])
    expected = model.compose(stream.prompts, 2.0, 2, seed=1)
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)
    with pytest.raises(MusiccmError, match="last window"):
        stream.set_prompt(PROMPT)
    endless = model.stream(PROMPT, steps=1, guidance_scale=1.0)
    made = sum(len(next(endless)) for _ in range(9))
    assert endless.samples is None and made > 4 * SAMPLES
    endless.close()
    assert list(endless) == []


def test_edits_keep_samples_and_tell_tokens_of_what_is_kept(
    model: Pipeline, planner: SemanticConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = (0.3 * torch.sin(torch.arange(20000) * 0.05)).round(decimals=4)[None]
    clip = SourceClip.of(model, Original(sound, 16000, "FLOAT"), "it")
    asked: list[Any] = []

    def watched(told_at: Any, known: Any = None) -> Any:
        asked.append(known)
        return SemanticConditioner.writer(planner, told_at, known)

    monkeypatch.setattr(planner, "writer", watched)
    longer = model.editor(2).extend(clip, PROMPT, 1.8)
    (kept,) = longer.kept
    assert torch.equal(longer.waveform_CS[:, : kept[1]], sound[:, : kept[1]]) and longer.waveform_CS.shape[1] == 28800
    held = longer.kept_T
    assert held[:FRAMES].all() and not held[FRAMES:].any()
    seen = clip.waveform_S[-SAMPLES:]
    assert list(asked[-1].values()) == planner.ids(seen[None], 16000)[0].tolist() and len(asked[-1]) == TOKENS
    expected = encode_sound(model.codec, seen, FRAMES, FRAMES, model.device)
    assert torch.equal(longer.z_CTF[:, :FRAMES], expected), "what is kept comes back bit by bit"
    mended = model.editor(2).inpaint(clip, PROMPT, 0.5, 0.55)
    first, last = mended.kept
    assert torch.equal(mended.waveform_CS[:, : first[1]], sound[:, : first[1]])
    assert torch.equal(mended.waveform_CS[:, last[0] :], sound[:, last[0] :])
    assert int((~mended.kept_T).sum()) == 2 * PER, "whole tokens"
    varied = model.editor(4).vary(clip, PROMPT, 0.5)
    assert varied.waveform_CS.shape == sound.shape and varied.kept == []


@pytest.mark.parametrize(("samples", "rate_hz"), [
    (10240, 16000), (20000, 16000), (11127, 22050), (45987, 44100), (2000, 16000), (700, 16000), (90, 16000),
])
def test_clips_of_any_length_are_edited(model: Pipeline, samples: int, rate_hz: int) -> None:
    """Longer and shorter than a window, than what a window makes anew, than a token; ends within a token."""
    sound = torch.randn(1, samples, generator=torch.Generator().manual_seed(samples)).clamp(-1, 1) * 0.3
    clip, editor = SourceClip.of(model, Original(sound, rate_hz, "FLOAT"), "it"), model.editor(1)
    end = samples / rate_hz
    for seconds in (end + 0.001, end + 0.3):
        longer = editor.extend(clip, PROMPT, seconds)
        assert longer.waveform_CS.shape == (1, round(seconds * rate_hz)) and torch.isfinite(longer.waveform_CS).all()
    for from_s, to_s in ((max(end / 2, end - 0.01), end), (0.7 * end, end), (0.4 * end, 0.45 * end), (0.001, end)):
        mended = editor.inpaint(clip, PROMPT, from_s, to_s)
        assert mended.waveform_CS.shape == sound.shape and torch.isfinite(mended.waveform_CS).all()
        start = round(from_s * rate_hz)
        assert not torch.equal(mended.waveform_CS[:, start:], sound[:, start:])
        for first, last in mended.kept:
            assert torch.equal(mended.waveform_CS[:, first:last], sound[:, first:last])
    assert editor.vary(clip, PROMPT, 0.5).waveform_CS.shape == sound.shape


@torch.no_grad()
def test_a_clip_shorter_than_a_chunk_goes_on_from_all_of_it(model: Pipeline, planner: SemanticConditioner) -> None:
    """0.08 s of 0.64 are held, and its two tokens, by one window that makes the rest."""
    sound = torch.randn(1, 2 * PER * 64, generator=torch.Generator().manual_seed(2)).clamp(-1, 1) * 0.3
    clip = SourceClip.of(model, Original(sound, 16000, "FLOAT"), "it")
    made = model.editor(1).extend(clip, PROMPT, 0.6)
    held = 2 * PER
    assert made.kept_T.tolist() == [True] * held + [False] * (FRAMES - held)
    known = planner.ids(clip.waveform_S[None], 16000)[0].tolist()
    (noise_seed,) = prompt_seeds([0], 1)
    writer = planner.writer(lambda number: (PROMPT, noise_seed), dict(enumerate(known)))
    clean = torch.zeros(1, 4, FRAMES, 1)
    clean[0, :, :held] = encode_sound(model.codec, clip.waveform_S, held, FRAMES, model.device)
    noise = sample_noise([noise_seed], model.latent_shape)
    expected = fill(model.stepper(1), writer.at(0, TOKENS), clean, made.kept_T, noise)
    torch.testing.assert_close(made.z_CTF, expected[0], rtol=0, atol=1e-5)


def test_sound_of_any_length_is_encoded_as_it_is_whole(model: Pipeline) -> None:
    sound = torch.randn(64 * 500, generator=torch.Generator().manual_seed(0)) * 0.1
    whole = model.codec.normalise(model.codec.posterior(sound[None]).mean)[0]
    torch.testing.assert_close(encode_sound(model.codec, sound, 500, 90, model.device), whole, rtol=0, atol=1e-4)
    padded = encode_sound(model.codec, sound[:6000], 110, 90, model.device)
    assert padded.shape == (4, 110, 1) and not padded[:, 94:].any()
    silent = encode_sound(model.codec, sound[:6000], 110, 90, model.device, silence=True)
    assert silent[:, 94:].abs().max() > 0


def test_what_cannot_be_is_refused(model: Pipeline) -> None:
    for overlap in (0.0, 1.0, -0.5, True):
        with pytest.raises(MusiccmError, match="overlap: expected a share above 0 and below 1"):
            model.compose(PROMPT, 2.0, 2, overlap=overlap)
    with pytest.raises(MusiccmError, match="would not be used"):
        model.compose([(0, PROMPT), (2.5, OTHER)], 2.0, 2)
    with pytest.raises(MusiccmError, match="would not be used"):
        model.stream([(0, PROMPT), (1.0, OTHER), (1.001, PROMPT)], None, 2)
    with pytest.raises(MusiccmError, match="a start in seconds, up to 1e.09, found 1e.308"):
        model.stream([(0, PROMPT), (1e308, OTHER)], None, 2)
    model.stream([(0, PROMPT), (1e9, OTHER)], None, 2).close()  # of which no list of tokens is made
    with pytest.raises(MusiccmError, match="steps"):
        model(PROMPT, 0)
