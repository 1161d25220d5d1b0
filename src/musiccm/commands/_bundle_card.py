"""The MODEL_CARD.md of a packed bundle, from what its stages and the packing measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musiccm.data.demo.worlds import world_of
from musiccm.models.bundle.card import results_table
from musiccm.texts import number_text

ABOUT_A_STAGE = ("stage", "steps", "train_seconds", "parameters", "seed", "n")
TEACHER_COLUMNS = ("model", "steps", "decoder", "sampler", "guidance_scale", "network_calls", "excess_fd_tagger",
                   "kad_tagger", "coverage_tagger", "fd_tagger", "excess_fd_events", "kad_events", "coverage_events",
                   "fd_events", "is_tagger_mean", "kl_tagger", "ta_similarity", "sim_aa_90", "sim_aa_95",
                   "acc_instrument", "acc_drums", "acc_texture", "acc_tempo", "acc_sounds", "acc_order", "acc_count",
                   "acc_tempo_bpm", "latency_s", "n")


def card(name: str, quality: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The card's text.

    Args:
        name: Title.
        quality: What is in `quality.json`.
        rows: Rows of a results.json; the teacher's, by all its samplers and scales, and the floor's are shown.
        notes: Sentences about them, such as what SIM_AA was compared with.

    Returns:
        Markdown.
    """
    stages, text_encoder = quality["stages"], quality.get("text_encoder", "clap")
    sections = [
        f"# {name}",
        _about(quality["corpus"]),
        "Written by `musiccm pack`; the same figures stand in `quality.json`. The recipe of a part is a file of this "
        "bundle, or an experiment of musiccm: `musiccm fit --config NAME`.",
        _missing(quality["missing"]),
        _borrowed(quality.get("borrowed")),
        "## What it knows", _known(quality["corpus"], quality.get("captions", ()), text_encoder),
        "## Data", _bullets(quality["corpus"]),
        "## Training", _stages(stages),
        "## Training clips", _training_index(quality.get("training_index"), text_encoder),
        "## Held-out figures of the stages", _stage_metrics(stages),
        f"## Held-out figures of this bundle\n\nOn clips of `{quality['corpus']['measured_on']}`, with the weights as "
        f"stored.{_events(quality['figures'])}",
        *[f"### {title}\n\n{_bullets(values)}" for title, values in quality["figures"].items()],
        "## Precision of the weights",
        f"A part is stored in float16 where no output on held-out clips changes by more than "
        f"{quality['tolerance']:g} of its own standard deviation (RMS).",
        results_table([{"part": part, **record} for part, record in quality["precision"].items()]),
        "## Teacher", _teacher(rows, notes),
        "## Packed on", _bullets(quality["machine"]),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _about(corpus: Mapping[str, Any]) -> str:
    kind = "A bundle for `musiccm` in the diffusers layout. It knows the music of the corpus below and no other."
    if "composer_version" not in corpus:
        return kind
    return f"{kind} That corpus is composed and rendered by `musiccm prepare demo`: no recording went into it."


def _known(corpus: Mapping[str, Any], captions: Sequence[str], text_encoder: str) -> str:
    """What captions may ask for, and how they are read."""
    world = world_of(corpus)
    read = {"clap": "One vector stands for a caption, CLAP's.",
            "tokens": "A caption is read as tokens, to which the U-Net attends; there is no CLAP."}[text_encoder]
    said = " ".join([*([] if world is None else [world.asks]), read, "Anything else in a caption is not followed."])
    shown = "\n".join(f"- {caption}" for caption in captions)
    return said + (f"\n\nSome captions of clips that were held out:\n\n{shown}" if captions else "")


def _events(figures: Mapping[str, Any]) -> str:
    """How the figures of events came about, where there are any."""
    if "events_accuracy" not in figures:
        return ""
    return (" Of events: the share of the clips that ask for it (`_n` of them) in which the embedder `events` reads "
            "what the caption says: all sounds of a clip that does not change, all parts in their order, the number of "
            "strokes, the tempo within 6 % (half and double forgiven). `reconstruction` is by VAE and vocoder, "
            "`fast_reconstruction` by VAE and fast decoder.")


def _borrowed(record: Mapping[str, Any] | None) -> str:
    """Which parts lie elsewhere, and where."""
    if record is None:
        return ""
    return (f"Only the parts of its own lie here. `{record['path']}` lends {', '.join(record['parts'])}, and it is "
            f"checked at loading that they are the ones that it was trained with ({record['content_hash'][:16]}).")


def _missing(parts: Sequence[str]) -> str:
    return f"**Parts that it lacks: {', '.join(parts)}.**" if parts else ""


def _stages(stages: Mapping[str, Mapping[str, Any]]) -> str:
    if not stages:
        return "The folder that was packed holds no record of its stages."
    table = []
    for name, record in stages.items():
        steps, planned = str(record.get("steps")), record.get("planned_steps")
        before = record.get("before", {})
        if before:
            steps += f", after {before['steps']} earlier"
        elif planned not in (None, record.get("steps")):
            steps += f" of {planned} planned"
        seconds = record.get("train_seconds", 0.0) + before.get("train_seconds", 0.0)
        table.append({"stage": name, "steps": steps, "hours": seconds / 3600,
                      "parameters": record.get("parameters"), "seed": record.get("seed"),
                      "recipe": record.get("recipe")})
    hours = sum(row["hours"] for row in table)
    return (f"{results_table(table)}\n\n{hours:.2f} hours in all, training steps alone (loading, validation and the "
            "latent cache come on top).")


def _training_index(about: Mapping[str, Any] | None, text_encoder: str) -> str:
    """What SIM_AA can look among."""
    if text_encoder == "tokens":
        return ("An index of training clips holds what the bundle's CLAP makes of them, and there is none: SIM_AA is "
                "not measured on its students. `musiccm prepare index` makes one by another bundle's CLAP.")
    if about is None:
        return ("**This bundle brings no index of what its teacher was trained on**: SIM_AA of its students compares "
                "with their own training clips alone.")
    made = "; ".join(f"{name}: " + ", ".join(f"{key} {value}" for key, value in record.items())
                     for name, record in about["corpora"].items())
    return (f"`training_index/` holds CLAP's embeddings (float16) of the {about['windows']:,} windows of the "
            f"{about['clips']:,} clips of `{about['source']}` that the teacher was trained on"
            f"{f' ({made})' if made else ''}; {about['held_out_clips']:,} more were held out for validation. CLAP "
            f"{about['clap'][:16]}. SIM_AA compares with them (`docs/plagiarism.md`).")


def _stage_metrics(stages: Mapping[str, Mapping[str, Any]]) -> str:
    """What each stage measured on the clips of the train folder that it held out."""
    blocks = []
    for name, record in stages.items():
        plain = {k: v for k, v in record.items()
                 if k not in {*ABOUT_A_STAGE, "planned_steps", "recipe"} and not isinstance(v, list | dict)}
        if plain:
            shown = ", ".join(f"{key} {number_text(value)}" for key, value in plain.items())
            blocks.append(f"- **{name}** (n = {record.get('n')}): {shown}")
    return "\n".join(blocks)


def _teacher(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    teachers = [row for row in rows if str(row.get("model")).startswith("teacher")]
    if not teachers:
        return "Not measured yet: `musiccm test` measures it, and `musiccm pack --results PATH` puts it here."
    columns = [c for name in TEACHER_COLUMNS for c in (name, f"{name}_low", f"{name}_high", f"{name}_chance")
               if any(row.get(c) is not None for row in teachers)]
    floors = [row for row in rows if row.get("model") == "floor"]
    shown = [{c: row.get(c) for c in columns} for row in [*teachers, *floors]]
    return ("`teacher`: guided DDIM, trailing spacing; `acc_*` is the share of clips that have what their caption "
            "asked for, by the tagger (of events: by the embedder `events`)"
            + ("; `floor`: what real renderings come to; brackets: 95 % intervals" if floors else "") + ".\n\n"
            + results_table(shown)
            + "".join(f"\n\n{note}." for note in notes))


def _bullets(entries: Mapping[str, Any]) -> str:
    return "\n".join(f"- {key}: {number_text(value)}" for key, value in entries.items())
