"""A model whose networks compute in replicas: to the engine a `MusicModel` like any other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from musiccm.long_form import MusicModel
from musiccm.pipeline import Pipeline
from musiccm.samplers import SamplerSpec, Stepper
from musiccm.serving.at_work import Unserved
from musiccm.serving.loading import ServedModel, named_model
from musiccm.serving.parts import CODEC, CONDITIONER, Part
from musiccm.serving.replica import Ask, asked


class ModelElsewhere(Unserved):
    """A model here, whose network, codec and text encoder are asked for elsewhere.

    What is drawn, sampled, laid out and levelled is computed here, so that music does not depend on which replica
    answers, and a job or stream outlasts every one of them. So do the tokens of long pieces of models that plan them.

    Args:
        model: The same model, here, on the CPU.
        name: The name that replicas have for it.
        identity: See `ServedModel.identity`.
        ask: Takes a question to a replica.
    """

    def __init__(self, model: MusicModel, name: str, identity: str, ask: Ask) -> None:
        super().__init__(model)
        self._about, self._ask = {"model": name, "identity": identity}, ask
        #: Of the replica that answered last, see `sidecar.computed_by`.
        self.computed_by: dict[str, Any] | None = None
        self.codec: Any = Part(model.codec, CODEC, lambda *call: self._asked("codec", *call))
        self.conditioner: Any = Part(model.conditioner, CONDITIONER, lambda *call: self._asked("conditioner", *call))

    def stepper(
        self,
        steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        strength: float = 1.0,
        sampler: SamplerSpec | None = None,
    ) -> Stepper:
        """See `MusicModel.stepper`; the network's calls are made by replicas."""
        stepper = self._inner.stepper(steps, guidance_scale, strength=strength, sampler=sampler)
        return replace(stepper, network=self._network)

    def _network(self, *args: Any, **options: Any) -> Tensor:
        return self._asked("network", "call", args, options)

    def _asked(self, part: str, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        question = {**self._about, "part": part, "method": method, "args": args, "options": options}
        result, self.computed_by = asked(self._ask, question)
        return result


def load_elsewhere(named: str, ask: Ask, decoder: str | None = None, half: bool = False) -> ServedModel:
    """Read a model of which only what is small will compute here.

    Args:
        named: See `load_model`.
        ask: Takes a question to a replica that has loaded the same model under the same name.
        decoder: As the replicas have it.
        half: As the replicas have it.

    Returns:
        The model.

    Raises:
        MusiccmError: As `load_model`.
    """
    name, where = named_model(named)
    here = ServedModel.of(name, Pipeline.from_pretrained(where, decoder=decoder), half)
    return replace(here, model=ModelElsewhere(here.model, name, here.identity, ask))
