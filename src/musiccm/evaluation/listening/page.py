"""The page of a listening test: a folder that opens as a file or from any static host, and asks for nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from musiccm.files import write_text

_HERE = Path(__file__).parent


def write_page(folder: Path, content: Mapping[str, Any]) -> None:
    """Write `index.html`; the sounds lie beside it in `sounds/`.

    Args:
        folder: The page's folder.
        content: What the script reads: no name of a system, a clip or a file of theirs may stand in it. Captions are
            text from outside, and only ever shown as text.
    """
    data = json.dumps(content, ensure_ascii=False, indent=None).replace("<", "\\u003c")
    style, plan, page = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "plan.js", "page.js"))
    # Where answers are sent is the one address that the page may speak to.
    policy = ("default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; media-src 'self' file:; "
              f"img-src data:; connect-src {content['collect'] or chr(39) + 'none' + chr(39)}")
    write_text(folder / "index.html", f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(content['title'])}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<link rel="icon" href="data:,">
<style>{style}</style></head><body>
<main><noscript>This page needs JavaScript, which runs in your browser alone.</noscript></main>
<p id="note" role="status" aria-live="polite"></p>
<script type="application/json" id="test">{data}</script>
<script>{plan}{page}</script></body></html>
""")
