"""A latent diffusion checkpoint (`musicldm-ckpt.ckpt`, `audioldm-s-full.ckpt`) taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from musiccm.errors import MusiccmError
from musiccm.models.convert.converted import check_scale_factor
from musiccm.models.convert.reading import read_original, tensors_of, under

UNET, EMA, VAE, CLAP = "model.diffusion_model.", "model_ema.", "first_stage_model.", "cond_stage_model.model."
VOCODER = f"{VAE}vocoder."
WEIGHTS = ("ema", "raw")
#: MusicLDM's and AudioLDM's noise schedule, for a file without its table.
RELEASED_BETAS = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.0015,
                  "beta_end": 0.0195}


class LdmCheckpoint:
    """The parts that a latent diffusion checkpoint holds.

    Args:
        path: The file.

    Attributes:
        vae: Weights of the autoencoder and of its training losses, without their prefix.
        vocoder: Weights of the vocoder.
        clap: Weights of CLAP.
        ignored: Keys of what is no weight.

    Raises:
        MusiccmError: It is unreadable or holds no U-Net.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors, self.ignored = tensors_of(read_original(path), path, "state_dict")
        self._raw = under(self.tensors, UNET)
        if not self._raw:
            raise MusiccmError(f"{path}: expected weights named {UNET}..., found {', '.join(list(self.tensors)[:3])}; "
                               "not a checkpoint of MusicLDM or AudioLDM")
        self.vocoder = under(self.tensors, VOCODER)
        self.vae = {name: value for name, value in under(self.tensors, VAE).items() if not name.startswith("vocoder.")}
        self.clap = under(self.tensors, CLAP)

    def unet(self, weights: str) -> dict[str, Tensor]:
        """The U-Net's weights.

        Args:
            weights: `ema` for the average over training, which MusicLDM samples with, or `raw` for the last step's.

        Returns:
            The weights, without prefix.

        Raises:
            MusiccmError: The file has no average, or one that is not of these weights.
        """
        if weights not in WEIGHTS:
            raise MusiccmError(f"--weights: expected one of {', '.join(WEIGHTS)}, found {weights!r}")
        if weights == "raw":
            return self._raw
        # the average's names are those of the wrapped network without their dots
        flat = {name: "diffusion_model" + name.replace(".", "") for name in self._raw}
        averages = under(self.tensors, EMA)
        if not any(name in averages for name in flat.values()):
            raise MusiccmError(f"{self.path}: holds no averaged weights ({EMA}...); only --weights raw can be had")
        lacking = [name for name, old in flat.items()
                   if old not in averages or averages[old].shape != self._raw[name].shape]
        if lacking or len(set(flat.values())) != len(flat):
            raise MusiccmError(f"{self.path}: the averaged weights are not those of this U-Net ({len(lacking)} lack or "
                               f"differ in size, first {lacking[:1]}); choose --weights raw or another file")
        return {name: averages[old] for name, old in flat.items()}

    def scale_factor(self, stated: float | None) -> float:
        """What raw latents are multiplied by: learned from the first batch, and kept in the checkpoint.

        Args:
            stated: The user's, which the file's must not contradict.

        Returns:
            The factor.

        Raises:
            MusiccmError: Nobody states it, both do and differ, or it is no positive number.
        """
        found = self.tensors.get("scale_factor")
        if found is None and stated is None:
            raise MusiccmError(f"{self.path}: has no scale_factor, without which latents have the wrong size; state it "
                               "(--scale-factor)")
        value = stated if found is None else float(found)
        assert value is not None
        check_scale_factor(value, "--scale-factor" if found is None else f"{self.path}: scale_factor")
        if stated is not None and abs(stated - value) > 1e-4 * abs(value):
            raise MusiccmError(f"{self.path}: its scale_factor is {value:.6g}, --scale-factor says {stated:.6g}; leave "
                               "the option out")
        return value

    def scheduler(self) -> tuple[dict[str, Any], list[str]]:
        """The noise schedule as diffusers configures it, and what was assumed about it."""
        betas = self.tensors.get("betas")
        schedule, assumed = dict(RELEASED_BETAS), ["noise schedule: MusicLDM's, for the file has no betas"]
        if betas is not None:
            schedule, assumed = describe_betas(betas), []
        return {
            "_class_name": "DDIMScheduler", **schedule, "prediction_type": "epsilon", "clip_sample": False,
            "set_alpha_to_one": False, "steps_offset": 1,
        }, [*assumed, "prediction: epsilon, as both released models"]

    def dropped(self, weights: str, used: Mapping[str, bool]) -> list[str]:
        """The names that no part was made from.

        Args:
            weights: Which of the U-Net's weights were taken.
            used: Whether `vae`, `vocoder` and `clap` were taken from this file.

        Returns:
            Names as in the file.
        """
        taken = [UNET] if weights == "raw" else [EMA + "diffusion_model"]
        taken += [VOCODER] if used["vocoder"] else []
        taken += [CLAP] if used["clap"] else []
        rest = [name for name in self.tensors if not name.startswith(tuple(taken))]
        if used["vae"]:  # what the autoencoder itself leaves behind is listed with it
            rest = [name for name in rest if not name.startswith(VAE) or name.startswith(VOCODER)]
        return [name for name in rest if name not in ("betas", "scale_factor")]


def describe_betas(betas: Tensor) -> dict[str, Any]:
    """A table of betas as a scheduler configuration: by its ends where these give the table, else whole."""
    table = betas.double()
    start, end = (float(f"{float(value):.6g}") for value in (table[0], table[-1]))
    for kind, power in (("scaled_linear", 2), ("linear", 1)):
        built = torch.linspace(start ** (1 / power), end ** (1 / power), len(table), dtype=torch.float64) ** power
        if torch.allclose(built, table, rtol=1e-5, atol=0):
            return {"num_train_timesteps": len(table), "beta_schedule": kind, "beta_start": start, "beta_end": end}
    # diffusers reads the table where there is one; the kind then has no meaning
    return {"num_train_timesteps": len(table), "trained_betas": table.tolist(), "beta_schedule": "linear"}
