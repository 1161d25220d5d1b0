"""The features that the embedded bundle brings are those that its teacher and the composer make today."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from musiccm.audio.mel import LogMel
from musiccm.audio.windows import fixed_window
from musiccm.data.demo.tracks import make_track, other_rendering
from musiccm.embedders import load_embedder
from musiccm.evaluation.candidates import clip_seed, initial_noise
from musiccm.evaluation.clip_features import prompt_hash, read_about, read_features
from musiccm.evaluation.feature_cache import PACKED, decoder_hashes, packed_name, teacher_hash
from musiccm.models.bundle import Bundle
from musiccm.pipeline import Pipeline

INDICES = (0, 7)
IDS = [f"test_{i:06d}" for i in INDICES]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.from_pretrained("musiccm-tiny")


def packed(bundle: Bundle, name: str) -> Path:
    (path,) = (bundle.path / PACKED).glob(f"{name}_*.safetensors")
    return path


def assert_same(path: Path, waveforms_BS: torch.Tensor) -> None:
    found, hashes = read_features(path)
    prompts = dict(zip(found.ids, hashes, strict=True))
    assert [prompts[name] for name in IDS] == [prompt_hash(make_track(0, "test", i).texts[0]) for i in INDICES]
    made = load_embedder("tagger", None, Bundle.from_pretrained("musiccm-tiny"))(waveforms_BS, 16000).embedding_RE
    kept = found.of(IDS).networks["tagger"].embedding_RE
    # half precision in the file, sums in another order in batches
    assert float((made - kept).abs().max()) < 0.01 * float(kept.std())
    assert float((made[0] - made[1]).abs().max()) > float(kept.std()), "clips do differ"


def test_every_file_is_of_the_bundle_as_it_is(bundle: Bundle) -> None:
    paths = sorted((bundle.path / PACKED).iterdir())
    keys = [read_about(path)["key"] for path in paths]
    assert [path.name for path in paths] == [packed_name(key) for key in keys]
    assert {key["teacher"] for key in keys} == {teacher_hash(bundle)}
    assert all(key["decoder_weights"] == decoder_hashes(bundle)[key["decoder"]] for key in keys)
    full = {(key.get("model", "floor"), key["decoder"]) for key, path in zip(keys, paths, strict=True)
            if len(read_features(path)[0]) > 2048}
    assert full == {(model, decoder) for model in ("teacher", "floor") for decoder in ("fast", "original")}


def test_the_teachers_are_what_it_makes(bundle: Bundle) -> None:
    pipeline = Pipeline.from_pretrained("musiccm-tiny", decoder="fast")
    stepper = pipeline.stepper(2, 1.0)
    noise = initial_noise([clip_seed(0, name) for name in IDS], pipeline.latent_shape, "cpu")
    with torch.inference_mode():
        text = pipeline.conditioner.text([make_track(0, "test", i).texts[0] for i in INDICES])
        waveforms = pipeline.codec.decode(stepper.sample(text, noise, lambda i: noise))
    assert_same(packed(bundle, "teacher_unguided_2_fast"), waveforms)


def test_the_floor_is_what_the_composer_and_the_decoder_make(bundle: Bundle) -> None:
    codec = bundle.codec("fast").eval()
    waves = torch.stack([fixed_window(torch.from_numpy(other_rendering(0, "test", i)), 81920) for i in INDICES])
    with torch.inference_mode():
        waveforms = codec.decode(codec.normalise(codec.encode(LogMel(bundle.mel)(waves))[0]))
    assert_same(packed(bundle, "floor_0_fast"), waveforms)
