"""Hours of the full-size trainings on one card and on eight, from the share of its peak that a card reaches.

That share is measured where `bench training` ran on the card (benchmarks/results/training-CARD.json), and assumed for
an A100 as long as it ran on none. Evaluation is left out, and eight cards are taken to be eight times as fast.
"""

from __future__ import annotations

from pathlib import Path

from musiccm.commands._timing import row
from musiccm.commands._utilisation import PEAKS
from musiccm.texts import read_json

RESULTS = Path(__file__).parent / "results"
#: Operations of a run: steps, clips of a step and operations of a clip, which `bench full_size` and
#: `bench full_size_matching` count.
RUNS = {
    "musiccm": 20_000 * 64 * 1_065e9,
    "musiccm_no_adversarial": 20_000 * 64 * 620e9,
    "musiccm_dmd2": 64 * (5_000 * 2_773e9 + 500 * 657e9),
}
#: Peaks of cards for which shares are assumed, and these.
CARDS = {"A100": PEAKS[next(name for name in PEAKS if name.startswith("A100"))]}
ASSUMED = (0.35, 0.25, 0.10)
#: The row of `bench training` that is of a full-size step.
MEASURED = "MusicLDM's size, compiled, adversarial, on a crop, batch 8: operations"


def measured() -> dict[str, tuple[float, float]]:
    """Peak in operations a second and the share of it that was reached, by card."""
    found = {}
    for path in sorted(RESULTS.glob("training-*.json")):
        results = read_json(path, "results of `musiccm bench training`")
        for one in results["rows"]:
            if one["case"].startswith(MEASURED) and one["ratio"] is not None:
                found[results["machine"]["gpu"]] = one["baseline"] * 1e12, one["ratio"]
    return found


def run(bundle: str) -> list[dict]:
    shares = [(card, "measured", peak, share) for card, (peak, share) in measured().items()]
    shares = shares or [(card, "assumed", peak, share) for card, peak in CARDS.items() for share in ASSUMED]
    return [row(f"{name} on {count} {card}, {how} {100 * share:.0f} % of its peak",
                [operations / (count * peak * share) / 3600], [], "h")
            for name, operations in RUNS.items() for card, how, peak, share in shares for count in (1, 8)]
