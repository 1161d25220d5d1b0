"""Whether results are of the teacher that is packed, or of another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musiccm.errors import MusiccmError

if TYPE_CHECKING:
    from musiccm.models.bundle import Bundle

log = logging.getLogger(__name__)

AGAIN = "measure this one by `musiccm test`, with model.init_args.bundle naming it"


def check_results_of(path: Path, results: Mapping[str, Any], bundles: Sequence[Bundle]) -> None:
    """Refuse results of another teacher, or of other decoders, than a bundle's.

    Results of version 0.3 and before state neither; they are taken, with a warning.

    Args:
        path: The results.json, for messages.
        results: Its content.
        bundles: The bundle in its forms, as the stages wrote it and as it is packed: results may be of either.

    Raises:
        MusiccmError: Says what was found and what was expected.
    """
    from musiccm.evaluation.feature_cache import decoder_hashes, teacher_hash

    if "teacher" not in results:
        log.warning("%s does not state which teacher it was measured on, as those of version 0.3 and before do not; "
                    "its figures are taken to be of %s. To be sure, %s", path, bundles[0].path, AGAIN)
        return
    stated = results["teacher"]
    if stated is None:
        raise MusiccmError(f"--results {path}: measured on a teacher that an experiment gave "
                           f"(model.init_args.teacher), and {bundles[0].path} is packed; {AGAIN}")
    expected = [teacher_hash(bundle) for bundle in bundles]
    if stated["hash"] not in expected:
        raise _other(path, "the teacher", stated["hash"], expected, bundles)
    known = [decoder_hashes(bundle) for bundle in bundles]
    for name in stated["decoders"]:
        found = [hashes[name] for hashes in known if name in hashes]
        if stated["decoders"][name] not in found:
            raise _other(path, f"the decoder {name!r}", stated["decoders"][name], found, bundles)


def _other(path: Path, what: str, found: str, expected: Sequence[str], bundles: Sequence[Bundle]) -> MusiccmError:
    known = " or ".join(dict.fromkeys(digest[:12] for digest in expected)) or "none"
    return MusiccmError(f"--results {path}: measured with {what} {found[:12]}, expected {known} of {bundles[0].path}; "
                        f"{AGAIN}, or name its results")
