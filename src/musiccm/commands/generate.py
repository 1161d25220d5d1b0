"""make music from text and write it to a file."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm import signals
from musiccm.bounds import FUSIONS, LEVELS, SAMPLER_NAMES, SCHEDULES, Bucket, check_texts
from musiccm.commands._edits import DEFAULT_STRENGTH, edit_of, edited_clips, write_edits
from musiccm.commands._generate_options import OPTIONS, check_options
from musiccm.commands._outputs import FORMATS, STDOUT, checked_files, checked_outputs, output_name, output_paths
from musiccm.commands._sidecar import check_model, says, take_over
from musiccm.errors import MusiccmError, NotFiniteError, naming
from musiccm.loading import loading
from musiccm.terminal import say
from musiccm.texts import short

if TYPE_CHECKING:
    from torch import Tensor

    from musiccm.pipeline import Pipeline
    from musiccm.samplers import Sampler

__all__ = ["main", "output_paths"]

DEFAULT_MODEL = "musiccm-tiny-student"
#: Clips at once, as the pipeline has it.
BATCH = 8


def main(argv: list[str]) -> int:
    """Run `musiccm generate`.

    Args:
        argv: The arguments behind `generate`.

    Returns:
        The exit code.
    """
    args = _parser().parse_args(argv)
    args.sidecar = None if args.from_sidecar is None else take_over(args, DEFAULT_MODEL)
    if args.prompts_file is None or args.out is None:
        args.out = output_name(args.out, args.format)
    _check_together(args)
    if args.level is None:
        args.level = "none" if edit_of(args) else "loudness"
    with naming(OPTIONS):
        check_options(args, _changes(args))
        return _generate(args)


def _generate(args: argparse.Namespace) -> int:
    if args.prompts_file is not None:
        paths = _read_prompts(args)
    else:
        suffixes = [".wav"] if args.stream else [f".{name}" for name in FORMATS]
        paths = checked_outputs(args.out, len(args.prompts), suffixes, args.force)

    with loading():
        pipeline = _open(args)
    if args.sidecar is not None:
        check_model(pipeline, args.sidecar, args.from_sidecar)
    for found in pipeline.unfamiliar(list(dict.fromkeys([*args.prompts, *(text for _, text in _changes(args))]))):
        if found is not None:
            _say(args, f"warning: {found}")
    if args.warm_up:
        bucket = Bucket(min(len(args.prompts), BATCH), args.steps, args.seconds)
        pipeline.warm_up(bucket, args.prompts, guidance_scale=args.guidance_scale, sampler=_sampler(pipeline, args))
    start = time.perf_counter()
    with _naming_broken_weights(pipeline):
        made_s = _stream(pipeline, args, paths) if args.stream else _write(pipeline, args, paths)
    _say(args, f"{len(args.prompts)} clip(s) of {made_s:g} s in {time.perf_counter() - start:.2f} s, "
               f"{pipeline.evaluations}")
    return 0


@contextlib.contextmanager
def _naming_broken_weights(pipeline: Pipeline) -> Iterator[None]:
    """Let an error about samples that are not finite say which weights are not.

    Raises:
        MusiccmError: As within.
    """
    try:
        yield
    except NotFiniteError as error:
        if not (broken := pipeline.broken_weights()):
            raise
        raise MusiccmError(f"{error}. Weights of {pipeline.bundle.path} hold NaN or infinity ({'; '.join(broken)}): "
                           "the files are damaged or their training diverged; restore them") from error


def _open(args: argparse.Namespace) -> Pipeline:
    """The model, on its device."""
    from musiccm.device import choose_device
    from musiccm.models.acceleration.networks import check_backend
    from musiccm.pipeline import Pipeline

    device = choose_device(args.device)
    check_backend("--compile", args.compile)
    # an edit encodes sound; what is compiled is so for the libraries' own networks
    plain = edit_of(args) is None and args.compile is None and args.compiled is None
    pipeline = Pipeline.from_pretrained(args.model, decoder=args.decoder, plain=plain).to(device)
    with naming({"compiled": "--compiled"}):
        return pipeline.accelerate(args.half, args.compile, args.compiled)


def _read_prompts(args: argparse.Namespace) -> list[Path]:
    """Take the prompts of a file in; the files that are to be written, such as `<id>.wav` in the folder `--out`."""
    from musiccm.data.audio_folder import read_captions
    from musiccm.data.corpora.text_tables import inside_root

    column, _, value = (args.only or "").partition("=")
    captions = read_captions(args.prompts_file, (column, value) if args.only else None)
    if strays := [name for name in captions if not inside_root(name)]:
        raise MusiccmError(f"{args.prompts_file}: the id {strays[0]!r} would be written outside of --out {args.out}")
    files: dict[Path, str] = {}
    for name in captions:
        if not Path(name).name.strip():
            raise MusiccmError(f"{args.prompts_file}: expected an id for each prompt, found {name!r} for "
                               f"{captions[name]!r}")
        path = Path(args.out) / f"{Path(name)}.{args.format or FORMATS[0]}"
        if path in files:
            raise MusiccmError(f"{args.prompts_file}: the ids {files[path]!r} and {name!r} name one file, {path}")
        files[path] = name
    args.prompts = check_texts(list(captions.values()))
    return checked_files(list(files), args.force)


def _write(pipeline: Pipeline, args: argparse.Namespace, paths: list[Path]) -> float:
    """Make whole clips and write them; seconds of one."""
    from musiccm.audio.io import encoded_audio, write_audio
    from musiccm.audio.wav_stream import WavStream

    if edit_of(args):
        edits = edited_clips(pipeline, args, _sampler(pipeline, args), _changes(args), paths)
        if args.sidecar is not None:
            _say(args, says(args.sidecar, [edited.waveform_CS for edited in edits]))
        return write_edits(edits, args, paths, lambda line: _say(args, line))
    waveforms = _make(pipeline, args)
    if args.sidecar is not None:
        _say(args, says(args.sidecar, [waveform_S[None] for waveform_S in waveforms]))
    for path, prompt, waveform in zip(paths, args.prompts, waveforms, strict=False):
        write_audio(path, waveform, pipeline.sample_rate_hz, args.force)
        _say(args, f"{path}: {short(prompt)}")
    if args.out == STDOUT and args.format not in (None, "wav"):
        sys.stdout.buffer.write(encoded_audio(waveforms[0], pipeline.sample_rate_hz, f".{args.format}", STDOUT))
        sys.stdout.buffer.flush()
    elif args.out == STDOUT:
        with WavStream(sys.stdout.buffer, pipeline.sample_rate_hz, len(waveforms[0])) as wav:
            wav.write(waveforms[0])
    return len(waveforms[0]) / pipeline.sample_rate_hz


def _make(pipeline: Pipeline, args: argparse.Namespace) -> list[Tensor]:
    sampler = {"guidance_scale": args.guidance_scale, "sampler": _sampler(pipeline, args), "level": args.level}
    shape = {"overlap": args.overlap, "fusion": args.fusion}
    if args.at or args.overlap is not None or args.fusion is not None:
        seconds = pipeline.duration_s if args.seconds is None else args.seconds
        return [pipeline.compose(_plan(args), seconds, args.steps, args.seed, **shape, **sampler)]
    return list(pipeline(args.prompts, args.steps, args.seed, seconds=args.seconds, **sampler))


def _stream(pipeline: Pipeline, args: argparse.Namespace, paths: list[Path]) -> float:
    """Write sound while it is made; seconds that were written."""
    from musiccm.audio.wav_stream import WavStream

    stream = pipeline.stream(_plan(args), args.seconds, args.steps, args.seed, overlap=args.overlap,
                             fusion=args.fusion, guidance_scale=args.guidance_scale,
                             sampler=_sampler(pipeline, args), level=args.level)
    target: Any = paths[0] if paths else sys.stdout.buffer
    written = 0
    # A file gets whole chunks, and what the level holds back as its end; a pipe's reader may keep us waiting.
    whole = signals.held if paths else contextlib.nullcontext
    try:
        with stream, WavStream(target, pipeline.sample_rate_hz, stream.samples, args.force) as wav:
            try:
                for chunk in stream:
                    with whole():
                        wav.write(chunk)
                        written += len(chunk)
                    signals.check()  # one that came while the level was being set
            except (signals.Ended, KeyboardInterrupt):
                if paths and len(last := stream.rest()):
                    wav.write(last)
                    written += len(last)
                raise
    except BrokenPipeError:
        _say(args, f"{args.out}: the reader has gone; it was given {written / pipeline.sample_rate_hz:.1f} s")
        raise
    except (signals.Ended, KeyboardInterrupt, MusiccmError) as error:
        if written:
            why = "ended early" if isinstance(error, MusiccmError) else "interrupted"
            _say(args, f"{args.out}: {why}; the {written / pipeline.sample_rate_hz:.1f} s that were made are kept")
        raise
    return written / pipeline.sample_rate_hz


def _sampler(pipeline: Pipeline, args: argparse.Namespace) -> Sampler:
    """The sampler that was asked for, or the model's own, with the gamma and schedule that were asked for."""
    from musiccm.samplers import make_sampler

    return make_sampler(pipeline.sampler(args.sampler), args.gamma, args.schedule)


def _plan(args: argparse.Namespace) -> list[tuple[float, str]]:
    return [(0.0, args.prompts[0]), *_changes(args)]


def _changes(args: argparse.Namespace) -> list[tuple[float, str]]:
    changes = []
    for start, text in args.at:
        try:
            changes.append((float(start), text))
        except ValueError:
            raise MusiccmError(f"--at {start}: expected seconds, then a text") from None
    return changes


def _check_together(args: argparse.Namespace) -> None:
    """Refuse options that would be ignored."""
    kind = edit_of(args)
    several = len(args.prompts) > 1
    inpaints = kind == "inpaint"
    for wrong, said in (
        (bool(args.prompts) == (args.prompts_file is not None),
         "expected either prompts or --prompts FILE, found " + ("both" if args.prompts else "neither")),
        (args.prompts_file is not None and (args.stream or kind or args.at or args.overlap is not None or args.fusion),
         "--prompts makes one clip a prompt: leave out --stream, --at, --overlap, --fusion and edits"),
        (args.prompts_file is not None and Path(args.out).suffix != "",
         f"--out {args.out}: --prompts writes ID.wav into a folder; name one"),
        (kind and args.level not in (None, "none"),
         f"--{kind} keeps the level of the clip that it is made of; leave out --level"),
        (args.warm_up and (args.stream or kind or args.at),
         "--warm-up is for clips and whole pieces of one text; leave out --stream, --at and edits"),
        (args.compiled is not None and args.compile is not None,
         "--compiled was compiled before, and --compile compiles now; leave out one of the two"),
        (args.stream and args.format not in (None, "wav"),
         f"--format {args.format}: a stream is a wav, which plays at every moment; leave out one of the two"),
        (args.only is not None and (args.prompts_file is None or "=" not in args.only),
         "--only chooses rows of --prompts FILE, as by --only is_valid_subset=True"),
        (args.stream and kind, "--stream makes new music: leave out --" + str(kind)),
        (args.stream and several, f"--stream takes one prompt, found {len(args.prompts)}; texts along time are --at"),
        (args.at and several, f"--at changes the text of one piece, found {len(args.prompts)} prompts; give one"),
        (several and kind is None and (args.overlap is not None or args.fusion is not None),
         f"--overlap and --fusion take one prompt, found {len(args.prompts)}; give one"),
        (args.seconds is not None and kind in ("inpaint", "vary"),
         f"--{kind}: the result has the clip's own length; leave out --seconds"),
        (inpaints != (args.from_ is not None), "--inpaint and --from need each other: --inpaint f.wav --from 3 --to 6"),
        (inpaints != (args.to is not None), "--inpaint and --to need each other: --inpaint f.wav --from 3 --to 6"),
        (args.strength is not None and kind != "vary", "--strength is how much --vary changes; it has no meaning here"),
    ):
        if wrong:
            raise MusiccmError(said)


def _say(args: argparse.Namespace, text: str) -> None:
    """Messages go where they cannot mix with sound on the standard output."""
    say(text, to_stderr=args.out == STDOUT)


def _seed(text: str) -> int | list[int]:
    """One whole number, or several with commas between them."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, or several as in 3,5,7, found {text!r}") from None
    return numbers if "," in text else numbers[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="musiccm generate", description=__doc__)
    parser.add_argument("prompts", nargs="*", help="what the music should be like; one clip a text")
    parser.add_argument("--prompts", dest="prompts_file", metavar="FILE",
                        help="prompts by id (.csv, .tsv, .json, as for `evaluate --captions`); writes ID.wav into the "
                             "folder --out")
    parser.add_argument("--from-sidecar", metavar="FILE",
                        help="make again what `musiccm serve` made, from the JSON that it gave beside the sound; edits "
                             "need their clip too, as by --continue FILE")
    parser.add_argument("--only", metavar="COLUMN=VALUE", help="of --prompts, the rows alone that have this value")
    parser.add_argument("--out", help="file to write, a .wav, .flac, .ogg or .mp3 (a stream: .wav), numbered for "
                                      "several; - writes to the standard output (default out.wav)")
    parser.add_argument("--format", choices=FORMATS, help="in place of the ending of --out, and for --prompts and -")
    parser.add_argument("--level", choices=LEVELS,
                        help="loudness: -18 LUFS, true peaks below -1 dBTP; peak: true peak at -1 dBTP; both fade ends "
                             "that cut a wave; none: the model's own samples, as evaluations need them (default: "
                             "loudness, and none for edits)")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument("--model", default=DEFAULT_MODEL,
                        help="directory, packaged bundle or hub id (default %(default)s)")
    parser.add_argument("--steps", type=int, help="sampling steps (default 4 for a student, 50 for a teacher, 20 for "
                                                  "one of MeLoDy's kind)")
    parser.add_argument("--seed", type=_seed, default=0,
                        help="of the noise; of one number each prompt gets noise of its own by its place, several, as "
                             "in 3,5,7, are one a prompt, which makes the clip that this prompt and seed make alone "
                             "(default %(default)s)")
    parser.add_argument("--guidance-scale", type=float, help="for a teacher (default 3, or 2.5 of MeLoDy's kind), or a "
                                                             "student that has one to choose (default: as exported)")
    parser.add_argument("--sampler", choices=SAMPLER_NAMES,
                        help="lcm, tcd or ddim for a student; ddim, heun or dpm-solver++ for a teacher")
    parser.add_argument("--gamma", type=float, help="for a student: share of fresh noise between steps, 0 to 1")
    parser.add_argument("--schedule", choices=SCHEDULES,
                        help="for a teacher: noise levels at equal distances of timesteps (trailing, the default), "
                             "or by the angle of signal and noise")
    parser.add_argument("--decoder", choices=["fast", "original"],
                        help="what makes sound of latents: one small network, or VAE decoder and vocoder (default: "
                             "fast, where the model has it)")
    parser.add_argument("--half", action="store_true", help="compute in bf16 where sound allows it, for GPUs")
    parser.add_argument("--compile", metavar="BACKEND", help="compile the U-Net, as by inductor: slow at first, for "
                                                              "GPUs and many clips")
    parser.add_argument("--compiled", metavar="FOLDER", type=Path,
                        help="what `musiccm export --compiled` made of this model on such a machine: nothing is "
                             "compiled then. It is machine code: take none from strangers")
    parser.add_argument("--warm-up", action="store_true",
                        help="before the first clip, do what the first of its shape does beside making music: compile, "
                             "and on a GPU record one graph from text to sound; for many --prompts")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    long = parser.add_argument_group("length")
    long.add_argument("--seconds", type=float, help="length, up to 3600 unless it is streamed (default: that of the "
                                                    "model's training clips)")
    long.add_argument("--at", nargs=2, action="append", default=[], metavar=("SECONDS", "TEXT"),
                      help="from there on, another text; may be repeated")
    long.add_argument("--stream", action="store_true",
                      help="write while the music is made, in constant memory; without --seconds until interrupted")
    long.add_argument("--overlap", type=float, help="shared part of neighbouring windows, 0 to below 1 (default 0.5)")
    long.add_argument("--fusion", metavar="FUSION", help=f"how windows are fused: {', '.join(FUSIONS)}")
    edit = parser.add_argument_group("music that is there").add_mutually_exclusive_group()
    edit.add_argument("--continue", dest="continue_", metavar="FILE", help="go on where this ends: its samples stay "
                      "as they are but for a last tenth of a second; --seconds is the length of both together")
    edit.add_argument("--inpaint", dest="inpaint_", metavar="FILE", help="make a range of this anew; the "
                      "rest stays as it is")
    edit.add_argument("--vary", dest="vary_", metavar="FILE", help="another take on this, all of it made anew")
    parser.add_argument("--from", dest="from_", type=float, metavar="SECONDS", help="start of the range to --inpaint")
    parser.add_argument("--to", type=float, metavar="SECONDS", help="end of the range to --inpaint")
    parser.add_argument("--strength", type=float, help=f"how much --vary changes, 0 to 1 (default {DEFAULT_STRENGTH})")
    return parser
