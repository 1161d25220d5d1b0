from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_bundle import SCHEDULER, make_unet
from torch import nn

from musiccm.diffusion import NoiseSchedule, jump_to_target, with_guidance
from musiccm.errors import MusiccmError
from musiccm.models.denoiser import Consistency, Denoiser, Float32Conv2d

SCHEDULE = NoiseSchedule.from_config(
    {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "num_train_timesteps": 1000}
)
T = torch.tensor([999, 19])


def unet() -> UNet2DConditionModel:
    """MusicLDM's architecture, small: the condition is a class label, concatenated to the time embedding."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=(8, 16),
        attention_head_dim=(2, 4),
        norm_num_groups=4,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=5,
        class_embeddings_concat=True,
    ).eval()


def inputs(device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, 4, generator=generator).to(device), torch.randn(2, 5, generator=generator).to(device)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_x0_and_eps_add_up_to_z_and_come_from_the_unet(kind: str, device: str) -> None:
    network = unet().to(device)
    (z, cond), t = inputs(device), T.to(device)
    with torch.no_grad():
        raw = network(z, t, encoder_hidden_states=None, class_labels=cond).sample.double()
        denoiser = Denoiser(network, SCHEDULE, kind)
        x0, eps = denoiser.predict(z, t, cond)
        torch.testing.assert_close(denoiser(z, t, cond), x0)
    abar = SCHEDULE.alphas_cumprod[T][:, None, None, None].to(device)
    torch.testing.assert_close(abar.sqrt() * x0 + (1 - abar).sqrt() * eps, z.double(), rtol=0, atol=1e-5)
    own = {"epsilon": eps, "sample": x0, "v_prediction": abar.sqrt() * eps - (1 - abar).sqrt() * x0}[kind]
    torch.testing.assert_close(own.double(), raw, rtol=1e-5, atol=2e-5)


def test_replacing_the_output_layer_keeps_parameters_names_and_values() -> None:
    network = unet()
    names = list(network.state_dict())
    parameters = [id(parameter) for parameter in network.parameters()]
    denoiser = Denoiser(network, SCHEDULE, "epsilon")
    assert list(denoiser.unet.state_dict()) == names
    assert [id(parameter) for parameter in denoiser.unet.parameters()] == parameters
    assert isinstance(denoiser.unet.conv_out, Float32Conv2d)
    clone = copy.deepcopy(denoiser)
    with torch.no_grad():
        clone.unet.conv_out.weight.zero_()
    assert float(denoiser.unet.conv_out.weight.detach().abs().sum()) > 0


class Flat(nn.Module):
    """A U-Net whose last layer alone decides its output: a large constant plus a small signal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_out = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.conv_out.weight.copy_(torch.eye(3)[:, :, None, None])
            self.conv_out.bias.fill_(1.0)

    def forward(self, z: torch.Tensor, t: torch.Tensor, **kwargs: object) -> tuple[torch.Tensor]:
        return (self.conv_out(z),)


def test_output_layer_and_conversion_stay_float32_under_autocast() -> None:
    z, cond = inputs()
    z = z.bfloat16().float() * 2**-6  # exact in bf16, but lost next to 1.0 in a bf16 sum
    denoiser = Denoiser(Flat(), SCHEDULE, "epsilon")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        x0 = denoiser(z, T, cond)
    abar = SCHEDULE.alphas_cumprod[T][:, None, None, None]
    exact = (z.double() - (1 - abar).sqrt() * (z.double() + 1.0)) / abar.sqrt()
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0.double(), exact, rtol=0, atol=1e-4)


def test_consistency_is_the_identity_at_zero_and_the_network_elsewhere(device: str) -> None:
    (z, cond), t = inputs(device), T.to(device)
    denoiser = Denoiser(unet().to(device), SCHEDULE, "v_prediction")
    f = Consistency(denoiser)
    with torch.no_grad():
        assert torch.equal(f(z, torch.zeros_like(t), cond), z)
        torch.testing.assert_close(f(z, t, cond), denoiser(z, t, cond), rtol=0, atol=1e-4)
        near = Consistency(denoiser, sigma_data=1.0, timestep_scaling=1.0)(z, torch.ones_like(t), cond)
        x0 = denoiser(z, torch.ones_like(t), cond)
    torch.testing.assert_close(near, 0.5 * z + 0.5**0.5 * x0)


def test_a_student_learns_and_its_teacher_does_not(device: str) -> None:
    (z, cond), t = inputs(device), T.to(device)
    teacher = Denoiser(unet().to(device), SCHEDULE, "epsilon").requires_grad_(False)
    student = Consistency(Denoiser(unet().to(device), SCHEDULE, "v_prediction"))
    with torch.no_grad():
        guided = with_guidance(teacher, cond, torch.zeros(1, 5, device=device), 3.0)
        z_hat, t_next = jump_to_target(guided, SCHEDULE, z, t, 20)
    assert t_next.tolist() == [979, 0]
    assert bool(torch.isfinite(z_hat).all())
    student(z, t, cond).square().mean().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_bf16_network_is_fed_bf16_and_answers_in_float32() -> None:
    z, cond = inputs()
    denoiser = Denoiser(unet().bfloat16(), SCHEDULE, "v_prediction")
    with torch.no_grad():
        assert denoiser(z, T, cond).dtype == torch.float32


def test_unknown_prediction_type_is_refused() -> None:
    with pytest.raises(MusiccmError, match="prediction_type"):
        Denoiser(unet(), SCHEDULE, "flow")


def test_a_second_time_reaches_the_networks_that_take_one_and_no_other() -> None:
    torch.manual_seed(0)
    plain = make_unet()
    own = {key: value for key, value in plain.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel(**{**own, "time_cond_proj_dim": 8}).eval()
    schedule = NoiseSchedule.from_config(SCHEDULER)
    denoiser = Denoiser(unet, schedule, "v_prediction")
    z, t, cond = torch.randn(2, 4, 8, 4), torch.tensor([500, 999]), torch.randn(2, 32)
    with torch.no_grad():
        at = {s: denoiser(z, t, cond, torch.full_like(t, s)) for s in (0, 100)}
        assert (at[0] - at[100]).abs().max() > 1e-3
        assert torch.equal(denoiser(z, t, cond), denoiser(z, t, cond, t)), "left out, it is the first"
        assert torch.equal(Consistency(denoiser)(z, t, cond), _boundary(z, t, at[0])), "the jump to clean"
        # the embedding that is added: with its projection at zero the network is one of a single time
        unet.time_embedding.cond_proj.weight.zero_()
        one = Denoiser(plain.eval(), schedule, "v_prediction")
        plain.load_state_dict({name: value for name, value in unet.state_dict().items() if "cond_proj" not in name})
        torch.testing.assert_close(denoiser(z, t, cond, t - 1), one(z, t, cond))
        with pytest.raises(MusiccmError, match="second time for a network that takes one; .* time_cond_proj_dim"):
            one(z, t, cond, t - 1)


def _boundary(z: torch.Tensor, t: torch.Tensor, x0: torch.Tensor) -> torch.Tensor:
    class Answers(torch.nn.Module):
        def forward(self, *_: torch.Tensor) -> torch.Tensor:
            return x0

    return Consistency(Answers())(z, t, torch.zeros(2, 1))
