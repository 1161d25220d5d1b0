"""A second CLAP from scratch, by which students that were tuned by the first are scored."""

from __future__ import annotations

from typing import Any

from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import SECOND_CLAP, save_second_clap
from musiccm.systems.stages.clap import ClapStage


class SecondClapStage(ClapStage):
    """Trains as `ClapStage` does, with a tokenizer of its own, and writes `evaluators/clap_second/`.

    It is to be independent of the first: another seed, and clips and captions that the first has not seen.
    """

    stage = "clap_second"
    part_name = SECOND_CLAP

    def tokenizer_of(self, bundle: str) -> Any:
        """That of a bundle's second CLAP."""
        return Bundle.from_pretrained(bundle, [SECOND_CLAP]).second_clap().tokenizer

    def save(self) -> None:
        """Write the whole model, its tokenizer and its feature extractor into one folder."""
        save_second_clap(self.bundle, self.best, self.tokenizer, self.feature_extractor)
