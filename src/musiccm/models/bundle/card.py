"""The README.md of an exported model: what it is, how it was made, how good it is, how to run it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from musiccm.diffusion import sampling_timesteps
from musiccm.files import write_text
from musiccm.models.bundle.student_record import recorded_guidance, recorded_sampler
from musiccm.texts import number_text

# Ends of intervals stand beside their number; the rest says how they came about.
_ONLY_FOR_PROGRAMS = re.compile(r".+_(low|high|bias|why|equal_calls_teacher)|draws_.+")
FRONT_MATTER = {
    "library_name": "musiccm",
    "pipeline_tag": "text-to-audio",
    "tags": ["text-to-music", "consistency-distillation", "few-step"],
}


UNGUIDED = "The snippet does not guide, as scale 1 does not.\n"


def write_card(
    path: Path,
    name: str,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    latent_shape: Sequence[int],
    base: str | None = None,
    notes: Sequence[str] = (),
    tokens: bool = False,
) -> None:
    """Write the card.

    Args:
        path: The file.
        name: Title.
        record: The `distillation` record of the bundle.
        rows: Rows of results; without any, the card says that there are none.
        latent_shape: [C, T, F] of a clip's latents.
        base: The bundle that other parts are borrowed from, as `base` of `musiccm.json` names it.
        notes: Sentences below the table of results.
        tokens: Whether its text encoder gives tokens, and not CLAP's vector.
    """
    points, steps = record["timesteps"], record["sampling_steps"]
    default = record["default_steps"]
    text = f"""---
{yaml.safe_dump(FRONT_MATTER, sort_keys=False).strip()}
---
# {name}

A text-to-music model that was distilled to sample in {steps[0]} to {steps[-1]} network calls (MusicCM, arXiv \
2404.13358).

```sh
musiccm generate "a calm piano melody over soft strings" --model PATH_OF_THIS_FOLDER --steps {default} --out out.wav
```

It was trained on {len(points)} timesteps ({", ".join(map(str, points[:2]))}, ..., {points[-1]}) and samples on those
only. It is meant for {", ".join(map(str, steps))} steps; {default} is the default.{_guidance(record)} \
Its weights derive from its
teacher's, and so does their licence.

{_in_diffusers(record, latent_shape, base, tokens)}
## Training

{_list({key: value for key, value in record.items() if key != "recipe"})}
{_list(record.get("recipe", {}))}

## Results

{results_table(rows)}
{_how_measured(rows, notes)}"""
    write_text(path, text)


def _guidance(record: Mapping[str, Any]) -> str:
    """Which guidance scale can be chosen, and what that costs; follows a sentence."""
    guidance = recorded_guidance(record)
    if guidance.kind == "fixed":
        return f" The teacher's guidance\n(scale {guidance.scale:g}) is part of its weights: do not guide it again."
    default = f"`--guidance-scale` chooses it, {guidance.scale:g} by default."
    if guidance.kind == "direct":
        return ("\nIt was distilled without guidance and is guided itself, by two network calls a step, one at scale "
                f"1.\n{default}")
    low, high = guidance.range
    return (f"\nIt is told its guidance scale, any from {low:g} to {high:g}, and needs no second network call for it.\n"
            f"{default}")


def _in_diffusers(record: Mapping[str, Any], latent_shape: Sequence[int], base: str | None, tokens: bool) -> str:
    """How the libraries' own classes sample it, where they have a scheduler for its noise process."""
    kind = recorded_guidance(record).kind
    if kind == "variable":
        return ("Its U-Net has a branch for the guidance scale (`addition_embed_type: guidance`), which diffusers' own "
                "class has not:\nthat refuses the folder, and `musiccm` samples it.\n")
    name, steps = record.get("scheduler", "LCMScheduler"), record["default_steps"]
    if name == "LCMScheduler":
        levels, step = str(steps), "z, x0 = scheduler.step(output, t, z, return_dict=False)"
    elif name == "FlowMatchLCMScheduler":
        chosen = sampling_timesteps(steps, torch.tensor(record["timesteps"])).tolist()
        shares = [(t + 1) / record["num_train_timesteps"] for t in chosen]
        step = "z = x0 = scheduler.step(output, t, z).prev_sample"  # after the last step no noise is left in it
        levels = f"sigmas=[{', '.join(f'{share:g}' for share in shares)}]"
    else:
        return ""
    return f"""## In diffusers

Between its steps diffusers' `{name}` adds nothing but fresh noise. That is gamma 1; {_own(recorded_sampler(record))}
{UNGUIDED if kind == "direct" else ""}
```python
{_snippet(name, levels, step, latent_shape, base, tokens)}
```
"""


def _own(sampler: Mapping[str, Any]) -> str:
    """The student's own sampler, beside diffusers'."""
    if sampler == {"name": "lcm", "gamma": 1.0}:
        return "so does `musiccm` by default, and the two agree."
    if sampler["name"] == "lcm":
        return f"`musiccm` takes\ngamma {sampler['gamma']:g} by default, and agrees with diffusers at `--gamma 1`."
    return (f"`musiccm` samples\nby {sampler['name']} by default, and agrees with diffusers at "
            "`--sampler lcm --gamma 1`.")


@dataclass(frozen=True)
class _Encoder:
    """How the snippet makes a text's condition, with a class of transformers."""

    class_name: str
    load: str
    encode: str
    arguments: str


_CLAP = _Encoder(
    "ClapModel",
    'clap = ClapModel.from_pretrained(parts, subfolder="text_encoder", dtype=torch.float32, use_safetensors=True)'
    ".eval()",
    "torch.nn.functional.normalize(clap.get_text_features(**tokens).pooler_output, dim=-1)",
    "encoder_hidden_states=None, class_labels=text",
)
_TOKENS = _Encoder(
    "AutoModelForTextEncoding",
    'encoder = AutoModelForTextEncoding.from_pretrained(parts, subfolder="text_encoder", dtype=torch.float32,\n'
    "                                                   use_safetensors=True).eval()",
    "encoder(**tokens).last_hidden_state",
    "encoder_hidden_states=text",
)


def _snippet(
    scheduler: str, levels: str, step: str, latent_shape: Sequence[int], base: str | None, tokens: bool
) -> str:
    """From a text to latents with the libraries' own classes."""
    text = _TOKENS if tokens else _CLAP
    classes = ", ".join(sorted(["AutoTokenizer", text.class_name]))
    parts = "student"
    if base is not None:
        beside, on_hub = base.startswith("."), "/" in base
        parts = f'student + "/{base}"' if beside else f'"{base}"' if on_hub else f'"PATH_OF_THE_BUNDLE {base}"'
    return f"""\
import torch
from diffusers import {scheduler}, UNet2DConditionModel
from transformers import {classes}

student = "PATH_OF_THIS_FOLDER"
parts = {parts}
unet = UNet2DConditionModel.from_pretrained(student, subfolder="unet", use_safetensors=True)
scheduler = {scheduler}.from_pretrained(student, subfolder="scheduler")
{text.load}
tokenizer = AutoTokenizer.from_pretrained(parts, subfolder="tokenizer", trust_remote_code=False)
tokens = tokenizer("a calm piano melody", return_tensors="pt")
scheduler.set_timesteps({levels})
with torch.no_grad():
    text = {text.encode}
    z = torch.randn(1, {", ".join(map(str, latent_shape))})
    for t in scheduler.timesteps:
        output = unet(z, t, {text.arguments}).sample
        {step}
# x0: normalised latents, of which musiccm's Pipeline.from_pretrained(student).codec.decode(x0) makes sound"""


def _how_measured(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """What the columns `decoder` and `sampler` say, where there are such, and the notes."""
    said = "".join(f"\n{note}.\n" for note in notes)
    if not any("decoder" in row for row in rows):
        return said
    gammas = sorted({row["gamma"] for row in rows if row.get("gamma") is not None})  # of version 0.1
    taken = f"; the student's rows were taken at gamma {', '.join(f'{gamma:g}' for gamma in gammas)}" if gammas else ""
    taken += "; `sampler` is how they were sampled" if any("sampler" in row for row in rows) else ""
    ratios = ""
    if any(key.endswith("_ratio") for row in rows for key in row):
        ratios = ("\n`excess_fd` is the Frechet distance over that of `floor`: other renderings of the same captions, "
                  "or else other\nreal clips. `_ratio` is to the teacher at its most steps, `_equal_calls_ratio` to "
                  "its best configuration with\nno more network calls (`equal_calls_teacher`), both by the same "
                  "decoder; brackets hold 95 % intervals.\n")
    return (f"\n`decoder` is what made sound of the latents: VAE decoder and vocoder (original), or the fast decoder "
            f"(fast){taken}.\n{ratios}{said}")


def _with_intervals(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose numbers hold their intervals, `0.71 [0.66, 0.77]`, without what only programs need."""
    found = {}
    for key, value in row.items():
        if _ONLY_FOR_PROGRAMS.fullmatch(key):
            continue
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        has_interval = isinstance(value, float) and low is not None and high is not None
        found[key] = f"{value:.3g} [{low:.3g}, {high:.3g}]" if has_interval else value
    return found


def _list(entries: Mapping[str, Any]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in entries.items())


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; columns in the order in which they first occur.

    A number and its interval are one cell. What `<column>_chance` says stands in a last row, which is the same for all.
    """
    if not rows:
        return "Not measured yet; `musiccm test` writes the figures."
    rows = [_with_intervals(row) for row in rows]
    plain = [key for row in rows for key, value in row.items() if not isinstance(value, dict | list)]
    columns = [key for key in dict.fromkeys(plain) if not key.endswith("_chance")]
    chance = {key: rows[0][f"{key}_chance"] for key in columns if rows[0].get(f"{key}_chance") is not None}
    rows = [*rows, *([{columns[0]: "chance", **chance}] if chance else [])]
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(number_text(row.get(column), none="") for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
