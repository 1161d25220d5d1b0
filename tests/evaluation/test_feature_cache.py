"""Features are found again under the same key, and for the same captions, only."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import musiccm
from musiccm.embedders import Embeddings
from musiccm.errors import MusiccmError
from musiccm.evaluation import feature_cache
from musiccm.evaluation.clip_features import ClipFeatures, prompt_hash, read_about, read_features, write_features
from musiccm.evaluation.feature_cache import FeatureCache, packed_name

IDS = ["a", "caf\udce9", "b", "c"]
PROMPTS = ["slow", "fast", "a tune", "another"]
TOLD = [prompt_hash(prompt) for prompt in PROMPTS]
KEY = {"model": "teacher", "steps": 50, "guidance_scale": 3.0, "decoder": "fast"}


def features(ids: list[str] = IDS) -> ClipFeatures:
    """Clip i: one row of i in `tagger`, i + 1 rows of i in `vgg`."""
    number = torch.arange(len(ids), dtype=torch.float32)
    counts = [i + 1 for i in range(len(ids))]
    return ClipFeatures(ids, {
        "tagger": Embeddings(number[:, None].expand(-1, 3), [1] * len(ids), -number[:, None].expand(-1, 2)),
        "vgg": Embeddings(number.repeat_interleave(torch.tensor(counts))[:, None].expand(-1, 2), counts),
    }, number[:, None].expand(-1, 4))


def test_features_are_found_under_their_key_and_captions_alone(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    assert cache.get(KEY, IDS, TOLD) is None
    cache.put(KEY, features(), TOLD, 100.0)
    found = FeatureCache(tmp_path).get(dict(reversed(KEY.items())), ["c", IDS[1]], [TOLD[3], TOLD[1]])
    assert found is not None and (found.calls, found.source, found.features.ids) == (100.0, "cache", ["c", IDS[1]])
    assert found.features.networks["tagger"].embedding_RE[:, 0].tolist() == [3, 1]
    assert found.features.networks["tagger"].logits_BG[:, 0].tolist() == [-3, -1]
    assert found.features.networks["vgg"].embedding_RE[:, 0].tolist() == [3, 3, 3, 3, 1, 1]
    assert found.features.networks["vgg"].counts == [4, 2] and found.features.networks["vgg"].logits_BG is None
    assert found.features.clap_ND[:, 0].tolist() == [3, 1] and found.features.text_audio_ND is None
    for other in ({**KEY, "steps": 8}, {**KEY, "decoder": "original"}, {**KEY, "extra": None}):
        assert cache.get(other, IDS, TOLD) is None
    assert cache.get(KEY, [*IDS, "d"], [*TOLD, prompt_hash("more")]) is None, "of more clips than were kept"
    assert cache.get(KEY, IDS, [TOLD[0], *TOLD[:3]]) is None, "for another caption"


def test_fewer_or_other_clips_do_not_cost_those_that_were_kept(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    cache.put(KEY, features(), TOLD, 1.0)
    cache.put(KEY, features(["d", "b"]), [prompt_hash("new"), prompt_hash("another tune")], 1.0)
    found = cache.get(KEY, ["a", "c", "d"], [TOLD[0], TOLD[3], prompt_hash("new")])
    assert found is not None and found.features.networks["tagger"].embedding_RE[:, 0].tolist() == [0, 3, 0]
    assert cache.get(KEY, ["b"], [TOLD[2]]) is None
    assert cache.get(KEY, ["b"], [prompt_hash("another tune")]) is not None


def test_what_a_clip_was_asked_for_with_is_its_caption_and_tokens_each_for_itself() -> None:
    asked = [("a tune", None), ("a tune", []), ("a tune", [1, 2]), ("a tune", [1]), ("a tune", [12]), ("fast", [1, 2]),
             ("a tune\n1 2", None), ("a tune\0[1, 2]", [])]
    found = [prompt_hash(prompt, tokens) for prompt, tokens in asked]
    assert len(set(found)) == len(asked) and found == [prompt_hash(prompt, tokens) for prompt, tokens in asked]
    assert all(0 <= number < 2**63 for number in found)


def test_a_bundles_own_features_need_no_code_to_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path / "cache", tmp_path / "bundle")
    cache.put(KEY, features(), TOLD, 1.0)
    (tmp_path / "bundle").mkdir()
    write_features(tmp_path / "bundle" / packed_name(KEY), features(), PROMPTS, {"key": KEY, "calls": 2.0},
                   torch.float16)
    monkeypatch.setattr(feature_cache, "source_digest", lambda: "other code")
    found = cache.get(KEY, IDS, TOLD)
    assert (found.source, found.calls) == ("bundle", 2.0) and found.features.clap_ND.dtype == torch.float32
    assert FeatureCache(tmp_path / "cache").get(KEY, IDS, TOLD) is None, "kept by other code"


@pytest.mark.parametrize("changed", ["samplers/steppers.py", "evaluation/candidates.py", "data/demo/render.py"])
def test_the_digest_is_of_the_code_that_makes_samples(tmp_path: Path, changed: str) -> None:
    copied = tmp_path / "musiccm"
    shutil.copytree(Path(musiccm.__file__).parent, copied, ignore=shutil.ignore_patterns("bundles", "__pycache__"))
    before = feature_cache.source_digest(copied)
    assert before == feature_cache.source_digest()
    (copied / "commands" / "pack.py").write_text("# not of the samples")
    feature_cache.source_digest.cache_clear()
    assert feature_cache.source_digest(copied) == before
    with (copied / changed).open("a") as file:
        file.write("\n# another line")
    feature_cache.source_digest.cache_clear()
    assert feature_cache.source_digest(copied) != before


def test_a_damaged_file_is_made_again_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(tmp_path)
    cache.put(KEY, features(), TOLD, 1.0)
    (entry,) = tmp_path.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2])
    assert cache.get(KEY, IDS, TOLD) is None
    assert f"{entry}: not a readable file of features" in caplog.text and "made again" in caplog.text
    for reader in (read_about, read_features):
        with pytest.raises(MusiccmError, match="not a readable file of features"):
            reader(entry)


def test_without_a_folder_nothing_is_kept() -> None:
    cache = FeatureCache(None)
    cache.put(KEY, features(), TOLD, None)
    assert cache.get(KEY, IDS, TOLD) is None


def test_a_file_where_the_folder_should_be_is_refused_before_clips_are_made(tmp_path: Path) -> None:
    (tmp_path / ".features").write_text("")
    with pytest.raises(MusiccmError, match="expected a folder for the features"):
        FeatureCache(tmp_path / ".features")


def test_the_ranks_clips_are_one_set_in_the_order_of_their_ids() -> None:
    first, second = features(["d", "a"]), features(["c"])
    whole = ClipFeatures.of_ranks([first, ClipFeatures.joined([]), second])
    assert whole.ids == ["a", "c", "d"] and whole.networks["vgg"].counts == [2, 1, 1]
    assert whole.networks["tagger"].embedding_RE[:, 0].tolist() == [1, 0, 0]
    batches = list(whole.batches(2))
    assert [ids for ids, _ in batches] == [["a", "c"], ["d"]]
    again = ClipFeatures.joined(batches)
    assert again.ids == whole.ids and torch.equal(again.clap_ND, whole.clap_ND)


def test_features_with_a_flipped_bit_are_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FeatureCache(tmp_path)
    cache.put(KEY, features(), TOLD, 1.0)
    path = cache.path(KEY)
    assert path is not None
    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1  # a number in the last tensor; the file stays readable
    path.write_bytes(damaged)
    assert cache.get(KEY, IDS, TOLD) is None and "damaged" in caplog.text
    cache.put(KEY, features(), TOLD, 1.0)
    assert cache.get(KEY, IDS, TOLD) is not None
