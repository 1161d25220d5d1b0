"""The training step at MusicLDM's size: work counted, seconds at batch 1, and memory at batch 8 as counted bytes.

U-Net, VAE and AudioMAE have random weights and the released shapes (185.0, 55.4 and 85.7 M); text tower, vocoder and
schedule are the given bundle's, which a step calls for one cached vector or not at all. The bytes are those of weights,
gradients, both moments, averages and bf16 copies, and of what autograd keeps between the two passes under bf16
autocast, on tensors without contents; the backward pass's own temporaries and an allocator's slack come on top.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from musiccm.audio.windows import keyed_generator
from musiccm.commands._timing import alternating, row
from musiccm.commands._utilisation import operations
from musiccm.commands.bench import load
from musiccm.device import choose_device
from musiccm.losses import discriminator_loss
from musiccm.models.acceleration.half import half_copy
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.features import ViTConfig, ViTFeatures
from musiccm.systems import speed
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial

training = load(Path(__file__).with_name("training.py"))

#: Latent frames that the discriminator sees, of 256, and decoded on either side.
CROP, CONTEXT = 48, 2
BATCH, REPEATS, CARD_BYTES = 8, 1, 40e9
#: Parameters of the release that the bundle here holds in another size: CLAP and HiFi-GAN.
UNSEEN = 193.9e6 + 55.3e6
#: The adversarial step may take this many times the step without it.
BOUND = 1.8


def write_bundle(folder: Path, small: str) -> Path:
    """A bundle of the released shapes, save for what a step does not call."""
    source = Bundle.from_pretrained(small)
    for name in ("tokenizer", "feature_extractor", "text_encoder", "scheduler", "vocoder"):
        shutil.copytree(source.root_of(name) / name, folder / name)
    shutil.copy(source.path / "model_index.json", folder)
    width = int(source.config("clap")["projection_dim"])
    parts = {
        "unet": UNet2DConditionModel(
            sample_size=[256, 16], in_channels=8, out_channels=8, block_out_channels=(128, 256, 384, 640),
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3), layers_per_block=2,
            up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"), cross_attention_dim=[128, 256, 384, 640],
            attention_head_dim=(4, 8, 12, 20), class_embed_type="simple_projection", class_embeddings_concat=True,
            projection_class_embeddings_input_dim=width,
        ),
        "vae": AutoencoderKL(
            in_channels=1, out_channels=1, down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=2,
            up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(128, 256, 512), latent_channels=8,
        ),
        "evaluators/audiomae": ViTFeatures(ViTConfig(input="kaldi"), source.mel),
    }
    for name, part in parts.items():
        save_part(folder, name, part, torch.float16)
    return folder


def middle(frames: int) -> slice:
    """The crop that the discriminator sees."""
    return slice((frames - CROP) // 2, (frames + CROP) // 2)


def step_of(system: MusicCM, adversarial: bool, straightforward: bool = False) -> Callable[[Any], None]:
    """Losses, backward passes and averages of a step; the optimizers' own work is left out."""
    kind = training.Straightforward if straightforward else MusicCM

    def step(batch: Any) -> None:
        system.guided_teacher = lambda *told: kind.guided_teacher(system, *told)
        generator = keyed_generator(0, "bench")
        z0 = system.codec.normalise(batch.latents_BCTF)
        x0_pred, loss, _ = system.distil(z0, batch.text_BD, generator)
        terms = None
        if adversarial:
            system._crop = lambda frames, _: None if straightforward else middle(frames)
            terms = kind._losses(system, z0, x0_pred, batch.text_BD, generator)
            loss = loss + terms["loss_g"]
        loss.backward()
        if terms is not None:
            discriminator_loss(system.discriminator, terms["real"], terms["fake"], terms["cond"])[0].backward()
        for average in (system.student_ema_target, system.student_ema_slow):
            average.update(system.student)
        system.zero_grad(set_to_none=True)

    return step


def giga_operations(function: Callable[[], Any]) -> float:
    """Work of a call."""
    return operations(function) / 1e9


def make_fake(modules: list[nn.Module], mode: FakeTensorMode, device: str) -> None:
    """Replace all tensors by ones without contents."""
    for module in chain.from_iterable(m.modules() for m in modules):
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    with mode:
                        made = mode.from_tensor(tensor.detach()).to(device)
                    trained = tensor.requires_grad
                    table[name] = nn.Parameter(made, trained) if table is module._parameters else made


class _Attention(torch.autograd.Function):
    """What a fused attention kernel keeps: its inputs, its result and a row of sums; on `mode`, nothing is computed."""

    @staticmethod
    def forward(ctx, query, key, value):
        result, sums = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, sums)
        return result

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Fused attention, and draws that are sent without being locked, which tensors without contents cannot be."""
    attention, pin = nn.functional.scaled_dot_product_attention, torch.Tensor.pin_memory
    nn.functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: _Attention.apply(q, k, v)
    torch.Tensor.pin_memory = lambda tensor: tensor
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention, torch.Tensor.pin_memory = attention, pin


def activation_bytes(system: MusicCM, batch: Any, mode: FakeTensorMode) -> int:
    """Bytes that autograd keeps between the forward pass and the backward pass, on a GPU under bf16 autocast."""
    held = [system, *system._half.values()]
    weights = {t.untyped_storage()._cdata for m in held for t in chain(m.parameters(), m.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)  # `torch.autocast` would refuse where there is no GPU
    try:
        with mode, as_on_a_gpu(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            generator = keyed_generator(0, "bench")
            latents, cond_BD = (x.to("cuda") for x in (batch.latents_BCTF, batch.text_BD))
            x0_pred, loss, _ = system.distil(system.codec.normalise(latents), cond_BD, generator)
            terms = system._losses(latents, x0_pred, cond_BD, generator)
            loss = loss + terms["loss_g"]
    finally:
        torch.set_autocast_enabled("cuda", False)
    return sum(storage.nbytes() for key, storage in kept.items() if key not in weights)


def weight_bytes(system: MusicCM) -> int:
    """Bytes of all weights, of the gradients and AdamW's moments, and of the bf16 copies."""
    trained = sum(p.numel() for p in chain(system.student.parameters(), system.discriminator.parameters()))
    held = sum(t.numel() * t.element_size() for t in chain(system.parameters(), system.buffers()))
    half = chain.from_iterable(part.parameters() for part in system._half.values())
    copies = sum(p.numel() * 2 for p in half if p.dtype == torch.bfloat16)
    return held + copies + 3 * 4 * trained + int(4 * UNSEEN)


def run(bundle: str) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        path = write_bundle(Path(folder) / "full", bundle)
        torch.manual_seed(0)
        system = MusicCM(str(path), adversarial=Adversarial(crop_frames=CROP, crop_context=CONTEXT))
    system._progress = lambda: 0.0
    device = choose_device("auto")
    one = training.batches(system.to(device), 1)[0]
    system.conditioner.null(1)
    steps = {"distillation alone": step_of(system, False), "adversarial, on a crop": step_of(system, True),
             "adversarial, straightforward": step_of(system, True, straightforward=True)}
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        # a GPU's first call loads kernels; on a CPU it would only double the minutes
        seconds = alternating({name: lambda s=s: s(one) for name, s in steps.items()}, REPEATS, int(device == "cuda"))

    # Tensors without contents: nothing is computed from here on.
    one = training.batches(system.to("cpu"), 1)[0]
    system.conditioner.null(1)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    make_fake([system], mode, "cpu")
    with mode:
        counts = {name: [giga_operations(lambda s=s: s(one))] for name, s in steps.items()}

    rows = []
    for figures, unit in ((counts, "GFLOP"), (seconds, "s")):
        ours, alone, theirs = (figures[name] for name in
                               ("adversarial, on a crop", "distillation alone", "adversarial, straightforward"))
        if alone:  # no seconds where REPEATS is 0
            rows += [row("adversarial, on a crop, against distillation alone, batch 1", ours, alone, unit, 1 / BOUND),
                     row("adversarial, straightforward, against distillation alone, batch 1", theirs, alone, unit),
                     row("adversarial, on a crop, against straightforward, batch 1", ours, theirs, unit)]
    return rows + memory_rows(system, one, mode)


def memory_rows(system: MusicCM, one: Any, mode: FakeTensorMode) -> list[dict]:
    make_fake([system], mode, "cuda")
    del system.guided_teacher
    many = type(one)(*(x.repeat(BATCH, *[1] * (x.ndim - 1)) if torch.is_tensor(x) else x * BATCH
                       for x in (one.latents_BCTF, one.text_BD, one.audio_BD, one.ids, one.captions)))
    null_BD = many.text_BD[:1].to("cpu")
    with mode:
        system.conditioner._remembered["", None] = null_BD.to("cuda")
    names = ("teacher", "codec", "features")
    system._half = {name: half_copy(system.frozen[name], [system.schedule]) for name in names}
    rows = []
    for case in ("on a crop", "on whole clips", "on a crop, recomputing activations"):
        if "recomputing" in case:
            speed.recompute_activations([system.student, system._half["codec"].vae])
        system._crop = lambda frames, _, whole="whole" in case: None if whole else middle(frames)
        kept, weights = activation_bytes(system, many, mode), weight_bytes(system)
        rows += [row(f"memory of a step {case}, batch {BATCH}, bf16, against a 40 GB card", [(kept + weights) / 1e9],
                     [CARD_BYTES / 1e9], "GB", 1.0),
                 row(f"of it activations, {case}, batch {BATCH}, bf16", [kept / 1e9], [], "GB")]
    return rows
