"""Finding, trusting and reading published files."""

import logging

import numpy as np
import pytest
import torch
from metrics_sounds import tones

from musiccm.embedders import load_embedder
from musiccm.embedders.weights import PUBLISHED, Published, find_weights, load_checkpoint
from musiccm.errors import MusiccmError
from musiccm.files import file_sha256


@pytest.fixture(autouse=True)
def _no_weights_folder(monkeypatch):
    monkeypatch.delenv("MUSICCM_WEIGHTS", raising=False)


class Evil:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_missing_file_is_named_with_where_to_get_and_put_it(name, tmp_path, monkeypatch):
    official = PUBLISHED[name]
    with pytest.raises(MusiccmError) as error:
        load_embedder(name)
    for part in (name, official.file, official.where, "MUSICCM_WEIGHTS is not set"):
        assert part in str(error.value)
    monkeypatch.setenv("MUSICCM_WEIGHTS", str(tmp_path))
    with pytest.raises(MusiccmError, match="does not hold it"):
        load_embedder(name)
    with pytest.raises(MusiccmError, match=r"no weights at '.*nowhere\.pth'"):
        load_embedder(name, tmp_path / "nowhere.pth")
    monkeypatch.setenv("MUSICCM_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(MusiccmError, match="MUSICCM_WEIGHTS: expected a folder"):
        load_embedder(name)


def test_pinned_digests_are_sha256():
    for official in PUBLISHED.values():
        assert official.sha256 is None or len(bytes.fromhex(official.sha256)) == 32
    assert PUBLISHED["vgg"].sha256[:8] in PUBLISHED["vgg"].file


def test_under_the_official_name_only_the_published_file_passes(tmp_path, monkeypatch, caplog):
    path = tmp_path / PUBLISHED["pann"].file
    path.write_bytes(b"something else")
    monkeypatch.setenv("MUSICCM_WEIGHTS", str(tmp_path))
    with pytest.raises(MusiccmError, match="damaged, or not the published one"):
        find_weights("pann")
    with pytest.raises(MusiccmError, match="damaged, or not the published one"):
        find_weights("pann", tmp_path)
    with caplog.at_level(logging.WARNING):
        found, provenance = find_weights("pann", path)
    assert found == path and provenance == {"file": path.name, "sha256": file_sha256(path), "published": False}
    assert "not the published file" in caplog.text

    caplog.clear()
    monkeypatch.setitem(PUBLISHED, "pann", Published(path.name, "there", file_sha256(path)))
    assert find_weights("pann") == (path, {**provenance, "published": True}) and not caplog.text
    monkeypatch.setitem(PUBLISHED, "pann", Published(path.name, "there", None))
    assert find_weights("pann")[1]["published"] is None and "not known" in caplog.text


def test_a_subfolder_of_the_embedders_name_will_do(tmp_path):
    (tmp_path / "audiomae").mkdir()
    path = tmp_path / "audiomae" / "pretrained.pth"
    path.write_bytes(b"x")
    assert find_weights("audiomae", tmp_path)[0] == path


def test_file_digest(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_published_cnn14_file_with_its_sampler_is_read_without_running_anything(cnn14_checkpoint, tmp_path, pann):
    """As PyTorch 1.x wrote it in 2020: the legacy container, and NumPy under its old module names."""
    path = tmp_path / "Cnn14.pth"
    torch.save(cnn14_checkpoint, path, _use_new_zipfile_serialization=False)
    embedder = load_embedder("pann", path)
    assert embedder.fingerprint == pann.fingerprint
    assert embedder.provenance["file"] == "Cnn14.pth" and embedder.provenance["published"] is False
    waveform = tones(0.5)
    mine, theirs = (embedder(waveform, 16000).embedding_RE for embedder in (embedder, pann))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_of_both_generations(tmp_path, module, zipped):
    path = tmp_path / "x.pth"
    content = {"model": {"w": torch.ones(2)}, "sampler": [np.arange(3), np.float64(0.25), np.ones(2, bool)]}

    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if not zipped:
        own = np.empty(0).__reduce__()[0].__module__.encode()
        path.write_bytes(path.read_bytes().replace(b"c" + own + b"\n", b"c" + module + b"\n"))
    loaded = load_checkpoint(path)
    assert loaded["sampler"][0].tolist() == [0, 1, 2] and loaded["sampler"][1] == 0.25
    assert torch.equal(loaded["model"]["w"], torch.ones(2))


@pytest.mark.parametrize("content", [{"model": Evil()}, {"a": np.array([Evil()], dtype=object)}])
def test_other_objects_are_refused_and_not_built(tmp_path, content, capsys):
    path = tmp_path / "evil.pth"
    torch.save(content, path)
    with pytest.raises(MusiccmError, match=r"evil\.pth: expected tensors, .* found other objects"):
        load_checkpoint(path)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut short"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(MusiccmError, match=r"x\.pth: "):
        load_checkpoint(tmp_path / "x.pth")


def test_a_checkpoint_is_a_mapping(tmp_path):
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(MusiccmError, match="expected a mapping of names to weights, found list"):
        load_checkpoint(tmp_path / "x.pth")


def test_unknown_embedder_and_a_tagger_without_a_bundle():
    with pytest.raises(MusiccmError, match="embedder 'passt': expected one of pann, pann32k, vgg, clap, clap_music"):
        load_embedder("passt")
    with pytest.raises(MusiccmError, match="it comes with a bundle"):
        load_embedder("tagger")
