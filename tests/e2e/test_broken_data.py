"""Audiostock and MagnaTagATune together, spoilt in every way that is known: the reports list what was planted and
nothing else, and a student is trained on the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from small_corpus import sound, write_clip

from musiccm import cli
from musiccm.data.latent_cache.dataset import LatentCache

from .conftest import World, checkpoints

pytestmark = pytest.mark.e2e

STOCK_TRACKS, MTAT_TRACKS, TEST_TRACKS = 12, 26, 3


def spoil_stock(root: Path, mtat: Path) -> dict[str, str]:
    """Plant bad items in Audiostock's layout; id -> reason."""
    train = root / "train"
    label = json.dumps({"text": ["a tune"], "tag": ["tune"]})
    spoilt = np.where(np.arange(32000) == 77, np.nan, sound(1))
    write_clip(root, "train", "p_silent", np.zeros(32000, np.float32), ".ogg", label=label)
    write_clip(root, "train", "p_nan", spoilt, ".wav", label=label)
    write_clip(root, "train", "p_short", sound(2, 0.4), label=label)
    write_clip(root, "train", "p_empty", np.zeros(0, np.float32), ".wav", label=label)
    write_clip(root, "train", "p_no_label", sound(3))
    (root / "label" / "p_no_label.json").unlink()
    write_clip(root, "train", "p_no_caption", sound(4), label=json.dumps({"text": ["", " "], "tag": ["x"]}))
    write_clip(root, "train", "p_not_json", sound(5), label="{oops")
    for stem, content in (("p_zero.mp3", b""), ("p_noise.ogg", b"\x01" * 4000)):
        (train / stem).write_bytes(content)
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        write_clip(root, "train", f"p_cut{suffix[1:]}", sound(6, 3.0), suffix, label=label)
        path = train / f"p_cut{suffix[1:]}{suffix}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    write_clip(root, "train", "p_lies", sound(7), ".wav", label=label)
    (train / "p_lies.wav").rename(train / "p_lies.flac")
    own = sorted(path for path in train.iterdir() if path.name.startswith("train"))
    shutil.copy(own[0], train / f"z_twin{own[0].suffix}")
    held = sorted((root / "test").iterdir())[0]
    shutil.copy(held, train / f"p_leak{held.suffix}")
    shutil.copy(next((mtat / "e").glob("*.mp3")), train / "p_other.mp3")
    for stem in ("p_zero", "p_noise", "z_twin", "p_leak", "p_other"):
        (root / "label" / f"{stem}.json").write_text(label)
    write_clip(root, "test", "p_silent_test", np.zeros(32000, np.float32), label=label)
    return {"p_silent": "silent", "p_nan": "nan", "p_short": "too_short", "p_empty": "empty", "p_no_label": "no_label",
            "p_no_caption": "no_caption", "p_not_json": "not_json", "p_zero": "zero_byte", "p_noise": "unreadable",
            "p_cutwav": "truncated", "p_cutflac": "truncated", "p_cutogg": "truncated", "p_cutmp3": "truncated",
            "p_lies": "mislabelled", "z_twin": "duplicate", "p_leak": "in_test", "p_other": "in_test"}


def spoil_mtat(root: Path) -> dict[str, dict[str, str]]:
    """Plant bad items in MagnaTagATune's; split -> id -> reason. A row without a path may belong to any split."""
    table = root / "annotations_final.csv"
    header, *rows = table.read_text().splitlines()
    cells = [row.split("\t") for row in rows]
    by_folder = {row[-1].strip('"')[0]: row for row in reversed(cells)}
    reasons, paths = {}, {}
    for folder in "01234d":
        row = by_folder[folder]
        paths[folder] = root / row[-1].strip('"')
        reasons[folder] = row[0].strip('"')
    paths["0"].write_bytes(b"")
    paths["1"].write_bytes(paths["1"].read_bytes()[: paths["1"].stat().st_size // 2])
    paths["2"].unlink()
    soundfile.write(paths["3"], sound(11, 6.0), 16000)  # whole, but not the ten seconds that its name states
    paths["d"].write_bytes(b"<html>404</html>" * 300)
    train = {reasons["0"]: "zero_byte", reasons["1"]: "truncated", reasons["2"]: "missing", reasons["3"]: "truncated"}
    good = by_folder["4"]
    twin = "4/twin-of-07-track-0-10.mp3"
    shutil.copy(paths["4"], root / twin)

    def like(name: str, path: str) -> str:
        return "\t".join([f'"{name}"', *good[1:-1], f'"{path}"'])

    rows += [like("99001", twin), like("99002", "4/../../outside-0-10.mp3"), like("99003", ""),
             "\t".join(good[:100]), like(good[0].strip('"'), "4/again-0-10.mp3")]
    table.write_text("\n".join([header, *rows]) + "\n")
    first = 2 + len(cells)
    anywhere = {"99003": "no_path", f"annotations_final.csv:{first + 3}": "malformed_row"}
    train |= {"99001": "duplicate", "99002": "outside_root", good[0].strip('"'): "duplicate_id"}
    return {"train": train | anywhere, "validation": anywhere, "test": {reasons["d"]: "unreadable"} | anywhere}


def listed(path: Path) -> dict[str, str]:
    report = json.loads(path.read_text())
    found = {item["id"]: item["reason"] for item in report["bad"]}
    assert len(found) == len(report["bad"]) == sum(report["counts"].values())
    assert report["used"] == report["found"] - len(found) - sum(report["unused"].values())
    return found


def test_every_planted_file_is_listed_and_the_rest_is_trained_on(
    world: World, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stock, mtat, cache = here / "stock", here / "mtat", here / "latents"
    path = world.experiment(here, "combined", [checkpoints(2)], max_steps=3, limit_val_batches=0)
    content = yaml.safe_load(path.read_text())
    settings = content["data"]["init_args"]
    settings |= {"root": None, "cache_dir": str(cache), "corpora": [
        {"layout": "audiostock", "root": str(stock), "weight": 2},
        {"layout": "magnatagatune", "root": str(mtat), "weight": 1}]}
    path.write_text(yaml.safe_dump(content))
    config = ["--config", str(path)]
    for root, tracks, more in ((stock, STOCK_TRACKS, ["--validation-tracks", "0"]),
                               (mtat, MTAT_TRACKS, ["--layout", "magnatagatune"])):
        command = ["prepare", "demo", "--out", str(root), *more, "--tracks", str(tracks)]
        assert cli.main([*command, "--test-tracks", str(TEST_TRACKS), "--seed", str(tracks), "--workers", "2"]) == 0
    planted = spoil_stock(stock, mtat)
    in_mtat = spoil_mtat(mtat)

    capsys.readouterr()
    assert cli.main(["prepare", "latents", *config, "--strict"]) == 2
    assert capsys.readouterr().err.count("Repair or remove it") == 1
    assert cli.main(["prepare", "latents", *config]) == 2
    assert "more than the accepted 5%" in capsys.readouterr().err and not cache.exists()

    settings["max_bad_fraction"] = 0.9
    path.write_text(yaml.safe_dump(content))
    assert cli.main(["prepare", "latents", *config]) == 0
    printed = capsys.readouterr().out
    assert listed(stock / "report-train.json") == planted
    assert listed(stock / "report-test.json") == {"p_silent_test": "silent"}
    assert {split: listed(mtat / f"report-{split}.json") for split in in_mtat} == in_mtat
    assert f"{STOCK_TRACKS} of {STOCK_TRACKS + len(planted)} audio files can be used" in printed
    for reason in {*planted.values(), *in_mtat["train"].values()}:
        assert f" {reason}" in printed

    index = LatentCache(cache / "train").index
    encoded = {index.clip_ids[number] for number in range(len(index.clip_ids))}
    assert len(encoded) == STOCK_TRACKS + MTAT_TRACKS - 4 and not {f"audiostock/{name}" for name in planted} & encoded
    report = json.loads((cache / "encoding.json").read_text())
    assert report["windows"] == len(index) + len(LatentCache(cache / "test")) and report["windows_per_s"] > 0
    assert sum(report["shares"].values()) == pytest.approx(1, abs=1e-3) and min(report["seconds"].values()) > 0
    assert cli.main(["fit", *config]) == 0
    assert (here / "lightning_logs" / "combined" / "version_0" / "checkpoints" / "last.ckpt").is_file()
