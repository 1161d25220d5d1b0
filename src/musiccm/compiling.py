"""A model compiled ahead of time for named shapes of music, so that whoever loads it compiles nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from musiccm.bounds import Bucket
from musiccm.errors import MusiccmError
from musiccm.files import replacing_folder
from musiccm.models.acceleration.compiled_package import FILE, CompiledPackage, Part
from musiccm.models.acceleration.packaged_call import ObservedCall, check_compiler
from musiccm.pipeline import CLIP, Pipeline


def compile_ahead(
    pipeline: Pipeline,
    folder: str | Path,
    buckets: Bucket | Sequence[Bucket] = CLIP,
    texts: Sequence[str] = ("",),
    half: bool = False,
    overwrite: bool = False,
) -> Path:
    """Compile a model's networks for shapes of music, with AOTInductor.

    Text encoder, denoising network and fast decoder are compiled for every shape of input that they meet where music of
    these shapes is made. What stands between them, the sampler's arithmetic on latents, remains PyTorch's own, as do
    the original decoders and, of MeLoDy's kind, what writes tokens.

    Args:
        pipeline: The model on its device; afterwards it is in the form that was compiled, and cannot be accelerated.
        folder: Directory to write; `Pipeline.accelerate(compiled=folder)` reads it.
        buckets: The shapes. A batch serves no smaller one: name each that will be asked for.
        texts: As long as prompts will be: they are padded to 32 tokens, 64, 128, ...; for each of these one text.
        half: See `Pipeline.accelerate`.
        overwrite: Replace a package that lies in `folder`.

    Returns:
        The directory.

    Raises:
        MusiccmError: There is no C++ compiler, the folder is in use or no package, the pipeline was accelerated, or it
            cannot make such music.

    Examples:
        >>> from musiccm import Pipeline
        >>> from musiccm.compiling import compile_ahead
        >>> compile_ahead(Pipeline.from_pretrained("musiccm-tiny-student"), "student.compiled")  # doctest: +SKIP
        PosixPath('student.compiled')
    """
    folder, shapes = Path(folder), [buckets] if isinstance(buckets, Bucket) else list(buckets)
    check_compiler()
    _refuse_to_overwrite(folder, overwrite)
    target = pipeline.compiled_target(half)
    pipeline.suit_compiler(half)
    parts = pipeline.compiled_parts
    with _observed(parts) as seen:
        for text in texts:
            pipeline.warm_up(shapes, [text], record=False)
            if not pipeline.conditioner.draws:
                for rows in {shape.batch for shape in shapes}:  # as a recorded call reads them
                    ids_BL, mask_BL = (part.expand(rows, -1) for part in pipeline.conditioner.tokenized([text]))
                    pipeline.conditioner.encode(ids_BL.to(pipeline.device), mask_BL.to(pipeline.device))
    with replacing_folder(folder, overwrite) as partial:
        partial.mkdir(parents=True)
        CompiledPackage.write(partial, target, [str(shape) for shape in shapes], parts,
                              {name: call.seen for name, call in seen.items()}, pipeline.device)
    return folder


@contextmanager
def _observed(parts: Mapping[str, Part]) -> Iterator[dict[str, ObservedCall]]:
    """Parts that remember what they are called with; as they were at the end."""
    seen = {name: ObservedCall(getattr(owner, method)) for name, (owner, method) in parts.items()}
    try:
        for name, (owner, method) in parts.items():
            setattr(owner, method, seen[name])
        yield seen
    finally:
        for owner, method in parts.values():
            delattr(owner, method)


def _refuse_to_overwrite(folder: Path, overwrite: bool) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not overwrite:
            raise MusiccmError(f"{folder}: exists and is not empty; choose another folder, or ask to overwrite it")
        if not (folder / FILE).is_file():
            raise MusiccmError(f"{folder}: is no compiled package (no {FILE}), and nothing else is overwritten; choose "
                               "another folder")
