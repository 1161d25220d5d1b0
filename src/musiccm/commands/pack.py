"""measure a trained bundle on held-out clips and write it as a small, documented one."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.errors import MusiccmError
from musiccm.terminal import say
from musiccm.texts import number_text, read_json

if TYPE_CHECKING:
    from musiccm.data.batch import WaveformBatch
    from musiccm.data.module import MusicDataModule
    from musiccm.models.bundle import Bundle

MIB = 2**20
#: Clips on which outputs in both precisions are compared.
PROBE_CLIPS = 16
BATCH = 32
#: Captions that the card shows.
SHOWN = 6


def main(argv: list[str]) -> int:
    """Run `musiccm pack`.

    Args:
        argv: The arguments behind `pack`.

    Returns:
        The exit code.

    Raises:
        MusiccmError: Nothing to pack, a result above --max-mb, --base with other parts than those that are borrowed,
            --results of another teacher, or files that cannot be read.
    """
    if argv[:1] == ["features"]:
        from musiccm.commands._features import pack_features

        return pack_features(argv[1:])
    if argv[:1] == ["words"]:
        from musiccm.commands._words import pack_words

        return pack_words(argv[1:])
    args = _parser().parse_args(argv)
    from musiccm.commands._bundle_card import card
    from musiccm.commands._measured_bundle import check_results_of
    from musiccm.commands.export import read_results
    from musiccm.files import replacing_folder, write_json, write_text
    from musiccm.models.bundle import Bundle
    from musiccm.models.bundle.files import WORDS

    source, target = Path(args.source), Path(args.to)
    rows, _, notes = read_results(Path(args.results), must_exist=True) if args.results else ([], 1.0, [])
    bundle = Bundle.from_pretrained(source)
    present, missing = parts_of(bundle)
    own = present if args.base is None else {name for name in present if (source / name).is_dir()}
    lent = None if args.base is None else borrowed(bundle, target, args.base, present - own)
    if args.trained_on and (bundle.gives_tokens or "text_encoder" not in own):
        raise MusiccmError(f"--trained-on: {source} has no CLAP of its own, by which training clips are indexed; leave "
                           "it out")
    if missing:
        say(f"{source}: lacks {', '.join(missing)}; packing the rest, without the figures that need them")
    refuse_to_overwrite(target, source)
    with replacing_folder(target) as staging:
        refuse_to_overwrite(target, source)  # as it is now that no other process can make it
        data = corpus(args.corpus, bundle, present, args.n, args.clip_samples)
        precision = write_parts(bundle, own, staging, next(iter(data.test_dataloader())), args.tolerance)
        keep_files(bundle, own, staging)
        if (source / WORDS).is_dir():
            shutil.copytree(source / WORDS, staging / WORDS)
        stages = stage_records(source, Path(args.stages) if args.stages else None, staging)
        index = None if bundle.gives_tokens else training_index(staging, args.name, args.trained_on)
        size = size_of(staging)
        if size > args.max_mb * MIB:
            raise MusiccmError(f"{target}: the bundle would take {size / MIB:.1f} MiB, more than --max-mb "
                               f"{args.max_mb:g} ({largest(staging)}); make a part smaller or raise the limit")
        packed = Bundle.from_pretrained(staging)
        if lent is not None:
            packed.base = bundle.base  # whose parts are the lender's, and no path leads to that from here
        if args.results:
            check_results_of(Path(args.results), read_json(Path(args.results), "what was measured"), [bundle, packed])
        quality = {
            "schema": 1, "figures": measured(packed, data, present), "missing": missing,
            "borrowed": lent, "text_encoder": "tokens" if bundle.gives_tokens else "clap",
            "corpus": described(args.corpus, data), "captions": [clip.captions[0] for clip in data.test_clips[:SHOWN]],
            "stages": stages, "precision": precision,
            "tolerance": args.tolerance, "machine": machine(), "training_index": index, "mib": round(size / MIB, 2),
        }
        if lent is not None:
            from musiccm.models.bundle.borrow import state_borrowed

            state_borrowed(staging, lent, *(found for found in (bundle, bundle.base) if found is not None))
        write_json(staging / "quality.json", quality)
        write_text(staging / "MODEL_CARD.md", card(args.name, quality, rows, notes))
    for part, record in precision.items():
        change = record["relative_change"]
        say(f"  {part:<22} {record['dtype']}" + (f"  relative change {change:.1e}" if change is not None else ""))
    for title, values in quality["figures"].items():
        say(f"  {title}: " + ", ".join(f"{k} {number_text(v, '.3f')}" for k, v in values.items()))
    say(f"{target}: {size_of(target) / MIB:.1f} MiB ({largest(target)})")
    return 0


def parts_of(bundle: Bundle) -> tuple[set[str], list[str]]:
    """The parts that a bundle has, and those of the layout that it needs and lacks.

    Of the bundle that it borrows from, the parts that it states count, and whatever reads clips.

    Raises:
        MusiccmError: It has none.
    """
    from musiccm.models.bundle.files import PARTS
    from musiccm.models.bundle.kinds import kinds

    stated = (bundle.settings.get("base") or {}).get("parts", ())
    present = {name for name in PARTS if (bundle.path / name).is_dir()
               or (bundle.has(name) and (name in stated or name.startswith("evaluators/")))}
    if not present:
        raise MusiccmError(f"{bundle.path}: none of {', '.join(PARTS)} is there; run the stages first (make bundle)")
    others = [kind for kind in kinds() if kind.network != bundle.kind.network]
    unneeded = {part for kind in others for part in kind.needed}
    needed = [name for name, kind in PARTS.items() if (name in bundle.kind.needed or not kind.optional)
              and name not in unneeded and not (name == "feature_extractor" and bundle.gives_tokens)]
    return present, [name for name in needed if name not in present]


def borrowed(bundle: Bundle, target: Path, base: str, parts: set[str]) -> dict[str, Any]:
    """The record of what the packed bundle will borrow.

    Raises:
        MusiccmError: The bundle that is packed borrows nothing, or the base's parts are others.
    """
    from musiccm.models.bundle.borrow import borrowed_parts
    from musiccm.models.bundle.files import PARTS

    if not parts:
        raise MusiccmError(f"--base {base}: {bundle.path} borrows no parts, all of them are its own; leave it out")
    return borrowed_parts(base, target, bundle, [name for name in PARTS if name in parts])


def refuse_to_overwrite(target: Path, source: Path) -> None:
    """Only a bundle may be replaced by a bundle, and not by itself.

    Raises:
        MusiccmError: The target is the source, or holds something else.
    """
    if target.resolve() == source.resolve():
        raise MusiccmError(f"--to {target} is the folder that is packed; name another one")
    if target.exists() and not (target / "model_index.json").is_file() and (target.is_file() or any(target.iterdir())):
        raise MusiccmError(f"--to {target}: is there and is no bundle (no model_index.json); name another folder")


def corpus(root: str, bundle: Bundle, present: set[str], limit: int, clip_samples: int | None) -> MusicDataModule:
    """The held-out clips, in windows as long as the U-Net was trained on.

    Raises:
        MusiccmError: No U-Net to tell the length and no --clip-samples, or a corpus that cannot be read.
    """
    from musiccm.data.module import MusicDataModule

    network, autoencoder = bundle.kind.network, bundle.kind.autoencoder
    if {network, autoencoder} <= present and clip_samples is None:
        clip_samples = bundle.latent_shape()[1] * bundle.codec("none").frame_samples
    if clip_samples is None:
        raise MusiccmError(f"{bundle.path}: without {network}/ and {autoencoder}/ the clip length is unknown; state "
                           "--clip-samples")
    if limit < 2:
        raise MusiccmError(f"--n must be at least 2, found {limit}")
    tags = bundle.root_of("evaluators/tagger") / "evaluators" / "tagger" / "config.json"
    data = MusicDataModule(
        root, clip_samples=clip_samples, sample_rate_hz=bundle.sample_rate_hz, eval_batch_size=BATCH,
        eval_limit=limit, vocabulary=str(tags) if "evaluators/tagger" in present else None,
    )
    data.setup("test")
    if len(data.test_clips) < limit:
        say(f"{root}: {len(data.test_clips)} test clips, fewer than --n {limit}; all of them are used")
    return data


def write_parts(
    bundle: Bundle, present: set[str], folder: Path, batch: WaveformBatch, tolerance: float
) -> dict[str, dict[str, Any]]:
    """Write every part, in half precision where that changes nothing, and the settings.

    Returns:
        For each part with weights what was chosen and what was measured.
    """
    import torch

    from musiccm.commands._precision import choose, probes
    from musiccm.models.bundle import save_settings
    from musiccm.models.bundle.files import PARTS, SECOND_CLAP, load_readers, save_part, save_second_clap
    from musiccm.progress import Progress

    few = type(batch)(batch.waveform_BS[:PROBE_CLIPS], batch.tags_BG[:PROBE_CLIPS], batch.ids[:PROBE_CLIPS],
                      batch.captions[:PROBE_CLIPS])
    compared = probes(bundle, few, present)
    chosen: dict[str, dict[str, Any]] = {}
    names = [name for name in PARTS if name in present]
    with Progress(len(names), "packing", "part") as bar:
        for name in names:
            part, dtype = bundle.part(name), None
            if PARTS[name].as_it_is:
                chosen[name] = {"dtype": "as its stage wrote it", "relative_change": None, "n": len(few)}
            elif isinstance(part, torch.nn.Module):
                record = choose(part, compared.get(name), tolerance)
                chosen[name] = {**record, "n": len(few)}
                dtype = getattr(torch, record["dtype"])
            if name == SECOND_CLAP:
                save_second_clap(folder, part, *load_readers(bundle.root_of(name) / name), dtype)
            else:
                save_part(folder, name, part, dtype)
            bar.update()
    settings = {key: value for key, value in bundle.settings.items() if key != "base"}  # borrowed parts are copied
    save_settings(folder, **{**settings, "mel": asdict(bundle.mel)})
    return chosen


def keep_files(bundle: Bundle, own: set[str], folder: Path) -> None:
    """Put parts without weights, and those that others are held to, back as they were, byte by byte.

    A tokenizer that is read and saved has other settings in its file, none of which alters a token; latent caches go by
    a hash of the files, and would have to be made again for the packed bundle.
    """
    from musiccm.models.bundle.files import PARTS, part_files

    for name in sorted(own):
        if PARTS[name].weights is None or PARTS[name].as_it_is:
            shutil.rmtree(folder / name)
            (folder / name).mkdir()
            for file in part_files(bundle.root_of(name) / name):
                shutil.copyfile(file, folder / name / file.name)


def stage_records(source: Path, experiments: Path | None, folder: Path) -> dict[str, dict[str, Any]]:
    """What each stage wrote about itself, with the steps that its experiment plans.

    Args:
        source: The bundle that the stages wrote.
        experiments: Folder of the stages' experiments: one of the package's own is named, any other is copied. None for
            its `stages`.
        folder: The packed bundle.

    Raises:
        MusiccmError: A record or an experiment file is unreadable.
    """
    from musiccm.config import PACKAGED, load_experiment

    records: dict[str, dict[str, Any]] = {}
    for path in sorted((source / "quality").glob("*.json")):
        records[path.stem] = read_json(path, "what a stage measured")
    if experiments is not None and not experiments.is_dir():
        say(f"{experiments}: no such folder; the experiment files are left out (--stages)")
        return records
    packaged, found = PACKAGED.resolve(), (experiments or PACKAGED / "stages").resolve()
    own = found.relative_to(packaged) if found.is_relative_to(packaged) else None
    for path in sorted(found.glob("*.yaml")):
        recipe = f"recipe/{path.name}" if own is None else (own / path.stem).as_posix()
        if path.stem in records:
            planned = load_experiment(path).get("trainer", {}).get("max_steps")
            records[path.stem] |= {"planned_steps": planned, "recipe": recipe}
        if own is None:
            (folder / "recipe").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / recipe)
    return records


def training_index(folder: Path, name: str, experiment: str | None) -> dict[str, Any] | None:
    """Write the index of what the teacher was trained on, embedded by the CLAP as it was packed.

    Args:
        folder: The packed bundle.
        name: What it is called.
        experiment: The teacher's experiment, whose data section names its clips and windows; None for no index.

    Returns:
        What the index covers; None without one.

    Raises:
        MusiccmError: The experiment or its corpus cannot be read, or the bundle has no CLAP.
    """
    if experiment is None:
        say(f"{folder}: no index of training clips (--trained-on); SIM_AA cannot look among what the teacher learned")
        return None
    from musiccm.data.experiment import data_module
    from musiccm.models.bundle import Bundle
    from musiccm.models.bundle.files import TRAINING_INDEX
    from musiccm.similarity.indexing import index_training_windows

    data = data_module([experiment], {"kind": "waveform", "bundle": str(folder)})
    found = index_training_windows(folder / TRAINING_INDEX, Bundle.from_pretrained(folder), name, data, BATCH)
    return {**found.about, "clap": found.key["clap"], "experiment": Path(experiment).name}


def measured(bundle: Bundle, data: MusicDataModule, present: set[str]) -> dict[str, Any]:
    """Held-out metrics of the bundle as it was written."""
    from musiccm.evaluation.bundle_quality import embed_parts, events_reader, quality_of

    total, events = len(data.waveforms("test")), events_reader(bundle, present)
    embedded = embed_parts(bundle, data.test_dataloader(), present, total, events)
    groups: Mapping[str, list[int]] = bundle.evaluators["tagger"].groups if "evaluators/tagger" in present else {}
    return quality_of(embedded, dict(groups), readings=events.groups if events is not None else {})


def described(root: str, data: MusicDataModule) -> dict[str, Any]:
    """The corpus: what it was made from, where it states that, and how many tracks it has."""
    manifest = Path(root) / "corpus.json"
    stated = read_json(manifest, "what a corpus is") if manifest.is_file() else {}
    trained = sum(report.used for name, report in data.reports.items() if name.split("/")[-1] == "train")
    return {**stated, "train_tracks": trained, "test_tracks": len(data.clips("test")),
            "clip_samples": data.clip_samples, "sample_rate_hz": data.sample_rate_hz, "measured_on": "test"}


def machine() -> dict[str, Any]:
    """What packed it."""
    import torch

    return {"platform": platform.platform(), "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def largest(folder: Path, count: int = 3) -> str:
    """The largest parts, for people."""
    from musiccm.models.bundle.files import PARTS

    sizes = sorted(((size_of(folder / name), name) for name in PARTS if (folder / name).is_dir()), reverse=True)
    return ", ".join(f"{name} {size / MIB:.1f}" for size, name in sizes[:count])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="musiccm pack", description=__doc__,
        epilog="`musiccm pack features` and `musiccm pack words` add to a bundle that is there; each has its --help.")
    parser.add_argument("--from", dest="source", required=True, help="bundle that the stages wrote")
    parser.add_argument("--to", required=True, help="folder to write; a bundle that lies there is replaced")
    parser.add_argument("--corpus", required=True, help="corpus whose test folder the parts are measured on")
    parser.add_argument("--n", type=int, default=500, help="at most this many clips (default %(default)s)")
    parser.add_argument("--name", default="musiccm-tiny", help="title of the card (default %(default)s)")
    parser.add_argument("--base", help="leave out the parts that the bundle borrows, and name who lends them: ../NAME "
                                         "beside --to, a packaged name or a hub id (default: they are copied)")
    parser.add_argument("--stages", metavar="FOLDER", help="the stages' experiments, to be copied, or named where they "
                                                           "are musiccm's own (default: its experiments/stages)")
    parser.add_argument("--trained-on", metavar="EXPERIMENT",
                        help="the teacher's experiment; its training clips are indexed for SIM_AA")
    parser.add_argument("--results", help="results.json of this bundle, whose teacher rows go into the card")
    parser.add_argument("--max-mb", type=float, default=40.0, help="largest size in MiB (default %(default)g)")
    parser.add_argument("--tolerance", type=float, default=0.01,
                        help="relative change of a part's output that counts as none (default %(default)g)")
    parser.add_argument("--clip-samples", type=int, help="window, where there is no U-Net to tell its length")
    return parser
