"""The README.md of an exported model: what it is, how it was made, how good it is, how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from musiccm.files import write_text

FRONT_MATTER = {
    "library_name": "musiccm",
    "pipeline_tag": "text-to-audio",
    "tags": ["text-to-music", "consistency-distillation", "few-step"],
}


def write_card(path: Path, name: str, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the card.

    Args:
        path: The file.
        name: Title.
        record: The `distillation` record of the bundle.
        rows: Rows of results; without any, the card says that there are none.
    """
    text = f"""---
{yaml.safe_dump(FRONT_MATTER, sort_keys=False).strip()}
---
# {name}

A text-to-music model that was distilled to sample in 1 to 8 network calls (MusicCM, arXiv 2404.13358).

```sh
musiccm generate "a calm piano melody over soft strings" --model PATH_OF_THIS_FOLDER --steps 4 --out out.wav
```

It was trained on {record["original_inference_steps"]} timesteps and samples on those only. The teacher's guidance
(scale {record["guidance_scale"]:g}) is part of its weights: do not guide it again. Its weights derive from its
teacher's, and so does their licence.

## Training

{_list({key: value for key, value in record.items() if key != "recipe"})}
{_list(record.get("recipe", {}))}

## Results

{results_table(rows)}
"""
    write_text(path, text)


def _list(entries: Mapping[str, Any]) -> str:
    return "\n".join(f"- {key}: {value}" for key, value in entries.items())


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a Markdown table; columns in the order in which they first occur."""
    if not rows:
        return "Not measured yet; `musiccm test` writes the figures."
    plain = [key for row in rows for key, value in row.items() if not isinstance(value, dict | list)]
    columns = list(dict.fromkeys(plain))
    lines = [" | ".join(columns), " | ".join("---" for _ in columns)]
    lines += [" | ".join(_cell(row.get(column)) for column in columns) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
