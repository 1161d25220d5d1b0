"""Half a minute by a model of MeLoDy's kind, whole and by part, and its language model with and without a cache.

Seconds of computing for a second of music (real-time factors: below 1 is faster than it plays), by the clock and in CPU
seconds of all threads together, which other work on the machine touches less. The renderer is guided and takes ten
steps by the paper's angles, or four unguided ones, which cost what a few-step student does; the baseline is the student
of musiccm-tiny at four steps, the same length on the same machine. The cache is compared with reading all tokens anew
for each.

The bundle is the one that `--bundle` names, if it is of this kind; else musiccm-tiny-melody; without that one, random
weights at the sizes of experiments/melody/stages, which the rows say: what music costs does not depend on weights.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from musiccm.commands._timing import row
from musiccm.config import load_experiment
from musiccm.device import choose_device
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.borrow import begin_bundle
from musiccm.models.bundle.files import resolve_bundle, save_part
from musiccm.models.melody.audio_vae import AudioVae
from musiccm.models.melody.dual_path import DualPath
from musiccm.models.melody.features import load_source
from musiccm.models.melody.kind import MelodyKind
from musiccm.models.melody.semantic_lm import SemanticLM, SemanticLMConfig
from musiccm.models.melody.token_rate import TOKEN_RATE_HZ
from musiccm.models.melody.tokenizer import SemanticTokenizer, SemanticTokenizerConfig
from musiccm.pipeline import Pipeline
from musiccm.systems.stages.dual_path import SCHEDULER

PACKAGED, BASE, BASELINE = "musiccm-tiny-melody", "musiccm-tiny", "musiccm-tiny-student"
SECONDS, REPEATS = 30.0, 2
PROMPT = "slow organ chords over soft strings, 80 bpm"
PROPOSED = {"name": "ddim", "schedule": "angle_proposed"}
#: What is said of a way, its steps, guidance scale (None: the bundle's) and sampler.
WAYS: tuple[tuple[str, int, float | None, dict[str, str]], ...] = (
    ("10 guided steps, proposed angles", 10, None, PROPOSED), ("4 unguided steps", 4, 1.0, PROPOSED))
#: And of a student's, which is sampled as it was trained to be.
STUDENT_WAYS: tuple[tuple[str, int, float | None, dict[str, str] | None], ...] = (("4 steps", 4, None, None),)
#: Steps of the baseline.
FEW = 4


def model_of(bundle: str, scratch: Path) -> tuple[str, str]:
    """The bundle that is measured, and what rows say of it.

    Args:
        bundle: Of `--bundle`.
        scratch: Where one of random weights is written, if there is none.
    """
    if isinstance(Bundle.from_pretrained(bundle, []).kind, MelodyKind):
        return bundle, Path(bundle).name
    try:
        resolve_bundle(PACKAGED)
    except MusiccmError:
        return str(random_bundle(scratch / "melody")), "random weights"
    return PACKAGED, PACKAGED


def settings(stage: str) -> dict[str, Any]:
    """The model's arguments of a stage's experiment."""
    return load_experiment(f"melody/stages/{stage}")["model"]["init_args"]


def random_bundle(folder: Path) -> Path:
    """A bundle of the sizes that the stages train, with random weights."""
    torch.manual_seed(0)
    begin_bundle(folder, BASE, "clap")
    shape, source = settings("dual_path")["dual_path"], load_source("tagger", resolve_bundle(BASE))
    stated = settings("semantic_tokens")
    width = stated.get("width") or source.width
    tokenizer = SemanticTokenizer(SemanticTokenizerConfig("tagger", source.fingerprint, source.width,
                                                          stated["codebook"], width))
    for buffer in (tokenizer.projection_FD, tokenizer.centroids_KD):
        if buffer is not None:
            buffer.normal_()
    joint = Bundle.from_pretrained(BASE, ["text_encoder"]).conditioner().width
    lm = SemanticLM(SemanticLMConfig(
        **settings("semantic_lm")["lm"], codebook=tokenizer.codebook, joint_width=joint,
        tokens=shape["frames"] // shape["frames_per_token"], tokenizer=tokenizer.fingerprint))
    lm.rvq.fit(torch.nn.functional.normalize(torch.randn(16 * lm.config.prefix_codebook, joint), dim=1), 0)
    vae = AudioVae(settings("audio_vae")["vae"])
    vae.set_moments(torch.zeros(shape["channels"]), torch.ones(shape["channels"]))
    for name, part in {"audio_vae": vae, "semantic_tokenizer": tokenizer, "semantic_lm": lm,
                       "dual_path": DualPath({**shape, "token_width": width}), "scheduler": SCHEDULER}.items():
        save_part(folder, name, part)
    return folder


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of the CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - clock, time.process_time() - cpu


def piece(pipeline: Pipeline, seed: int, steps: int, scale: float | None, sampler: dict[str, str] | None) -> object:
    """A piece of its own: plans that were written before are remembered, so that every one has a seed of its own."""
    return pipeline.compose(PROMPT, SECONDS, steps, seed, guidance_scale=scale, sampler=sampler)


@torch.no_grad()
def music_rows(pipeline: Pipeline, baseline: Pipeline, said: str) -> list[dict]:
    """Real-time factors; the sides take turns."""
    spent: dict[str, list[tuple[float, float]]] = {}
    ways = STUDENT_WAYS if pipeline.is_student else WAYS
    for turn in range(REPEATS + 1):  # the first is not counted
        for name, steps, scale, sampler in ways:
            found = clocked(lambda n=turn, s=steps, g=scale, how=sampler: piece(pipeline, n, s, g, how))
            spent.setdefault(name, []).append(found)
        spent.setdefault(BASELINE, []).append(clocked(lambda n=turn: piece(baseline, n, FEW, None, None)))
        print(f"pieces, {turn} of {REPEATS}", file=sys.stderr, flush=True)
    rows = []
    for name, *_ in ways:
        for place, unit in ((0, "s / s"), (1, "CPU s / s")):
            ours, theirs = ([one[place] / SECONDS for one in spent[side][1:]] for side in (name, BASELINE))
            rows.append(row(f"{said}, {SECONDS:g} s by {name}, against {BASELINE} at {FEW} steps", ours, theirs, unit))
    return rows


@torch.no_grad()
def token_rows(lm: SemanticLM, prefix_BQ: torch.Tensor, said: str) -> list[dict]:
    """The language model's tokens of the piece, with keys and values kept and without; the tokens must be the same."""
    count = round(SECONDS * TOKEN_RATE_HZ)
    spent: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    for turn in range(REPEATS + 1):
        written = {}
        for cache in spent:
            def write(cache: bool = cache, to: dict = written, seed: int = turn) -> None:
                to[cache] = lm.generate(prefix_BQ, count if seed else 2, [seed], cache=cache)

            found = clocked(write)
            spent[cache] += [found] if turn else []
        same = float((written[True] == written[False]).float().mean())
        print(f"tokens, {turn} of {REPEATS}: {same:.3f} are the same", file=sys.stderr, flush=True)
    return [row(f"{said}, {count} tokens with the cache, against without", *([one[place] for one in spent[cache]]
                                                                            for cache in (True, False)), unit)
            for place, unit in ((0, "s"), (1, "CPU s"))] + [
        row(f"{said}, share of these tokens that are the same with the cache and without", [same], [], "of 1")]


def run(bundle: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as scratch:
        path, said = model_of(bundle, Path(scratch))
        device = choose_device("auto")
        pipeline, baseline = (Pipeline.from_pretrained(name).to(device) for name in (path, BASELINE))
        prefix_BQ = pipeline.conditioner.lm.prefix(pipeline.conditioner.joint.prompts([PROMPT]))
        return music_rows(pipeline, baseline, said) + token_rows(pipeline.conditioner.lm, prefix_BQ, said)
