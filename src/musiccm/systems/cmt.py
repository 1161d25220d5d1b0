"""Trajectory start (consistency mid-training, CMT): regress points of the teacher's own paths onto their ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from musiccm.data.batch import LatentBatch, TrajectoryBatch
from musiccm.data.trajectories.files import COMMAND, FORMAT, check_trajectories, differences
from musiccm.device import sent
from musiccm.diffusion import AnyCondition
from musiccm.errors import MusiccmError
from musiccm.losses.distillation import distillation_loss
from musiccm.systems.checkpoint_fit import bundle_identity, plain
from musiccm.systems.lcm import LCM
from musiccm.systems.parallel import own_rows
from musiccm.systems.ranges import check_ranges
from musiccm.systems.settings import Distillation, Optimization
from musiccm.systems.teacher_paths import kept_timesteps

DATA_MODULE = "musiccm.data.module.MusicDataModule"


@dataclass
class Paths:
    """The objective's own settings: the teacher's paths and how they are trained on.

    Args:
        count: how many there are, each with the caption of a training item.
        steps: of the teacher's sampler on each.
        points: points of each path that are kept, evenly spaced, the first of them pure noise.
        top_share: share of the items that start at pure noise, as one-step sampling does; the others are evenly drawn
            from the other points.
    """

    count: int = 4096
    steps: int = 50
    points: int = 10
    top_share: float = 0.5

    def check(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            MusiccmError: names the key.
        """
        check_ranges("paths.", vars(self), count="count steps points", share="top_share")
        if self.points > self.steps:
            raise MusiccmError(f"paths.points: expected at most paths.steps = {self.steps}, found {self.points}.")
        if self.points == 1 and self.top_share < 1:
            raise MusiccmError("paths.top_share: expected 1 where paths.points is 1, and pure noise the only point, "
                               f"found {self.top_share}.")


class CMT(LCM):
    """Gives a student the ends of its guided teacher's paths, at any point of them.

    The paths are made beforehand (`musiccm prepare trajectories`): the guided teacher, sampled from N(0, I) as it is
    sampled otherwise. The loss is `E d(f(z_t, t), z_0)` over points z_t and ends z_0 of one path. It needs neither the
    teacher nor a target network in its step and never sees a recording: a start for other objectives, which take its
    checkpoint by `distillation.start`. Validation measures self-consistency on recordings, as LCM's does.

    Args:
        bundle: directory, packaged name or hub id of the teacher's bundle.
        distillation: the student and the distance; curriculum and target average are read by validation alone.
        paths: the paths.
        optimization: optimizer of the student.
        seed: seed of the paths' noise and of the points.
        teacher: the denoiser that makes the paths; the bundle's by default.
    """

    holds_frames = False

    def __init__(
        self,
        bundle: str = "musiccm-tiny",
        distillation: Distillation | None = None,
        paths: Paths | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(bundle, distillation, optimization, seed, teacher)
        self.paths = paths or Paths()

    def check_settings(self, own: Mapping[str, Any]) -> None:
        """Refuse paths that cannot be made, and conditions that none was made for.

        Raises:
            MusiccmError: names the key.
        """
        super().check_settings(own)
        (own["paths"] or Paths()).check()
        if self.distillation.audio_condition_share > 0:
            raise MusiccmError("distillation.audio_condition_share: expected 0, as the teacher's paths are made for "
                               f"captions, found {self.distillation.audio_condition_share}.")
        if self.distillation.guidance == "variable":
            raise MusiccmError("distillation.guidance: expected fixed or direct, as the teacher's paths are made by "
                               "one scale, found 'variable'.")

    @classmethod
    def check_experiment(cls, experiment: Mapping[str, Any]) -> None:
        """Refuse to train without the paths that the settings ask for.

        Raises:
            MusiccmError: says which command makes them.
        """
        super().check_experiment(experiment)
        data, settings = experiment.get("data") or {}, experiment["model"].get("init_args") or {}
        if experiment["subcommand"] != "fit" or data.get("class_path") != DATA_MODULE:
            return
        paths = Paths(**(settings.get("paths") or {}))
        paths.check()
        stated = settings.get("distillation") or {}
        taught = Distillation(**{key: stated[key] for key in ("guidance", "guidance_scale") if key in stated})
        expected = rolled_by(paths, taught.taught_scale, settings.get("seed", 0))
        check_trajectories((data.get("init_args") or {}).get("trajectories_dir"), expected, paths.count)

    def path_key(self) -> dict[str, Any]:
        """What of the model the paths depend on."""
        return {
            **rolled_by(self.paths, self.distillation.taught_scale, self.seed),
            "timesteps": kept_timesteps(self.paths.steps, self.paths.points, self.schedule.num_train_timesteps),
            "teacher": plain(self.teacher) if self.given_teacher else bundle_identity(self.bundle),
        }

    def setup(self, stage: str) -> None:
        """Refuse paths of another teacher, or rolled out otherwise."""
        super().setup(stage)
        trajectories = getattr(getattr(self.trainer, "datamodule", None), "trajectories", None)
        if stage == "fit" and trajectories is not None:
            found = trajectories()
            if reasons := differences(found.key, {"format": FORMAT, **self.path_key()}):
                raise MusiccmError(f"{found.folder}: stale trajectories: {'; '.join(reasons)}. Make them again with "
                                   f"`{COMMAND} --overwrite`")

    def objective(
        self, batch: LatentBatch, z0: Tensor, cond_BD: AnyCondition, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Any]:
        """`lambda` times the distance of the student's answers from the ends of the paths.

        Raises:
            MusiccmError: the batch has no paths.
        """
        if not isinstance(batch, TrajectoryBatch):
            raise MusiccmError("data.init_args.trajectories_dir: this objective trains on trajectories of its teacher, "
                               f"found recordings; name the folder that `{COMMAND}` writes")
        settings, points = self.distillation, batch.points_BPCTF.shape[1]
        u_B2 = own_rows(lambda n: torch.rand(n, 2, generator=generator, dtype=torch.float64), len(batch))
        lower_B = 1 + (u_B2[:, 1] * (points - 1)).long()
        chosen_B = sent(torch.where(u_B2[:, 0] < self.paths.top_share, 0, lower_B), z0.device)
        z = batch.points_BPCTF[torch.arange(len(batch), device=z0.device), chosen_B]
        prediction = self.consistency("online")(z, batch.timesteps_P[chosen_B], cond_BD)
        loss, _ = distillation_loss(prediction, z0, settings.distance, settings.huber_h)
        return settings.weight * loss, {"loss_path": loss.detach()}, None


def rolled_by(paths: Paths, guidance_scale: float, seed: int) -> dict[str, Any]:
    """What of the settings the paths depend on, by the names of their key."""
    return {"steps": paths.steps, "points": paths.points, "guidance_scale": float(guidance_scale), "noise": seed}
