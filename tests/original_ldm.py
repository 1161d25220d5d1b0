"""MusicLDM's networks as its authors laid them out, written anew from what is known of them, to compare with.

Module names are those of the released checkpoints; nothing else is taken from the original code. U-Net: GroupNorm of 32
groups (eps 1e-5 in residual blocks, 1e-6 before attention), SiLU, one transformer block with two self-attentions and a
GEGLU, the CLAP vector mapped linearly and laid beside the time embedding. Autoencoder: latent diffusion's. Vocoder:
HiFi-GAN, kind 1, weight norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def modules(**named: nn.Module) -> nn.Module:
    holder = nn.Module()
    for name, module in named.items():
        holder.add_module(name, module)
    return holder


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, emb: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, c_out))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, c_out), nn.SiLU(), nn.Dropout(0.0),
                                        nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x_BLD: Tensor) -> Tensor:
        q, k, v = (to(x_BLD).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for to in (self.to_q, self.to_k, self.to_v))
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class Geglu(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, -1)
        return value * F.gelu(gate)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = SelfAttention(width, heads), SelfAttention(width, heads)
        self.ff = modules(net=nn.Sequential(Geglu(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width)))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x))
        return x + self.ff.net(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, heads)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class OriginalUNet(nn.Module):
    """`levels[i]` times `width` channels; attention wherever the resolution was halved at least once."""

    def __init__(self, width: int = 128, levels: tuple[int, ...] = (1, 2, 3, 5), blocks: int = 2, channels: int = 8,
                 head: int = 32, cond: int = 512, concat: bool = True) -> None:
        super().__init__()
        self.width, self.concat = width, concat
        time, emb = 4 * width, 8 * width if concat else 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.film_emb = nn.Linear(cond, time)
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1)])])
        now, skips = width, [width]
        for level, times in enumerate(levels):
            for _ in range(blocks):
                layers: list[nn.Module] = [ResBlock(now, times * width, emb)]
                now = times * width
                if level:
                    layers.append(SpatialTransformer(now, now // head))
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(now)
            if level < len(levels) - 1:
                self.input_blocks.append(nn.ModuleList([Down(now)]))
                skips.append(now)
        self.middle_block = nn.ModuleList(
            [ResBlock(now, now, emb), SpatialTransformer(now, now // head), ResBlock(now, now, emb)]
        )
        self.output_blocks = nn.ModuleList()
        for level, times in reversed(list(enumerate(levels))):
            for block in range(blocks + 1):
                layers = [ResBlock(now + skips.pop(), times * width, emb)]
                now = times * width
                if level:
                    layers.append(SpatialTransformer(now, now // head))
                if level and block == blocks:
                    layers.append(Up(now))
                self.output_blocks.append(nn.ModuleList(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, channels, 3, padding=1))

    def forward(self, z: Tensor, t_B: Tensor, cond_BD: Tensor) -> Tensor:
        half = self.width // 2
        angles = t_B[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
        emb, film = self.time_embed(torch.cat([angles.cos(), angles.sin()], 1)), self.film_emb(cond_BD)
        emb = torch.cat([emb, film], 1) if self.concat else emb + film
        skips, h = [], z
        for layers in self.input_blocks:
            h = run(layers, h, emb)
            skips.append(h)
        h = run(self.middle_block, h, emb)
        for layers in self.output_blocks:
            h = run(layers, torch.cat([h, skips.pop()], 1), emb)
        return self.out(h)


def run(layers: nn.ModuleList, h: Tensor, emb: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
    return h


class VaeBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, c_in, eps=1e-6), nn.GroupNorm(32, c_out, eps=1e-6)
        self.conv1, self.conv2 = nn.Conv2d(c_in, c_out, 3, padding=1), nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class VaeAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2) for conv in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).unflatten(2, x.shape[2:]))


def middle(width: int) -> nn.Module:
    return modules(block_1=VaeBlock(width, width), attn_1=VaeAttention(width), block_2=VaeBlock(width, width))


class OriginalVae(nn.Module):
    def __init__(self, width: int = 128, levels: tuple[int, ...] = (1, 2, 4), blocks: int = 2, z: int = 8) -> None:
        super().__init__()
        widths, top = [width * times for times in levels], width * levels[-1]
        down, now = nn.ModuleList(), width
        for level, w in enumerate(widths):
            stage = modules(block=nn.ModuleList([VaeBlock(now if i == 0 else w, w) for i in range(blocks)]))
            if level < len(widths) - 1:
                stage.downsample = modules(conv=nn.Conv2d(w, w, 3, stride=2))
            down.append(stage)
            now = w
        self.encoder = modules(conv_in=nn.Conv2d(1, width, 3, padding=1), down=down, mid=middle(top),
                               norm_out=nn.GroupNorm(32, top, eps=1e-6), conv_out=nn.Conv2d(top, 2 * z, 3, padding=1))
        up: list[nn.Module] = []
        for level, w in reversed(list(enumerate(widths))):
            stage = modules(block=nn.ModuleList([VaeBlock(now if i == 0 else w, w) for i in range(blocks + 1)]))
            if level:
                stage.upsample = modules(conv=nn.Conv2d(w, w, 3, padding=1))
            up.insert(0, stage)
            now = w
        self.decoder = modules(conv_in=nn.Conv2d(z, top, 3, padding=1), up=nn.ModuleList(up), mid=middle(top),
                               norm_out=nn.GroupNorm(32, width, eps=1e-6), conv_out=nn.Conv2d(width, 1, 3, padding=1))
        self.quant_conv, self.post_quant_conv = nn.Conv2d(2 * z, 2 * z, 1), nn.Conv2d(z, z, 1)

    def moments(self, mel_B1MN: Tensor) -> Tensor:
        e = self.encoder
        h = e.conv_in(mel_B1MN)
        for stage in e.down:
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "downsample"):
                h = stage.downsample.conv(F.pad(h, (0, 1, 0, 1)))
        h = e.mid.block_2(e.mid.attn_1(e.mid.block_1(h)))
        return self.quant_conv(e.conv_out(F.silu(e.norm_out(h))))

    def decode(self, z_BCTF: Tensor) -> Tensor:
        d = self.decoder
        h = d.conv_in(self.post_quant_conv(z_BCTF))
        h = d.mid.block_2(d.mid.attn_1(d.mid.block_1(h)))
        for stage in reversed(d.up):
            for block in stage.block:
                h = block(h)
            if hasattr(stage, "upsample"):
                h = stage.upsample.conv(F.interpolate(h, scale_factor=2, mode="nearest"))
        return d.conv_out(F.silu(d.norm_out(h)))


def normed(conv: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(conv)


class OriginalVocoder(nn.Module):
    RATES, KERNELS, RESBLOCKS, DILATIONS = (5, 4, 2, 2, 2), (16, 16, 8, 4, 4), (3, 7, 11), (1, 3, 5)

    def __init__(self, mels: int = 64, width: int = 1024) -> None:
        super().__init__()
        self.conv_pre = normed(nn.Conv1d(mels, width, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(self.RATES, self.KERNELS, strict=True):
            up = nn.ConvTranspose1d(width, width // 2, kernel, rate, padding=(kernel - rate) // 2)
            self.ups.append(normed(up))
            width //= 2
            for k in self.RESBLOCKS:
                first = [normed(nn.Conv1d(width, width, k, dilation=d, padding=(k - 1) * d // 2))
                         for d in self.DILATIONS]
                second = [normed(nn.Conv1d(width, width, k, padding=(k - 1) // 2)) for _ in self.DILATIONS]
                self.resblocks.append(modules(convs1=nn.ModuleList(first), convs2=nn.ModuleList(second)))
        self.conv_post = normed(nn.Conv1d(width, 1, 7, padding=3))

    def forward(self, mel_BMN: Tensor) -> Tensor:
        x = self.conv_pre(mel_BMN.transpose(1, 2))
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            branches = []
            for block in self.resblocks[3 * stage : 3 * stage + 3]:
                h = x
                for c1, c2 in zip(block.convs1, block.convs2, strict=True):
                    h = h + c2(F.leaky_relu(c1(F.leaky_relu(h, 0.1)), 0.1))
                branches.append(h)
            x = sum(branches) / len(branches)
        return self.conv_post(F.leaky_relu(x)).tanh().squeeze(1)


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Weights of a size that keeps signals alive through every layer, norms and biases off their defaults."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("weight_g"):
            p.data = 1.0 + 0.2 * noise.abs()
        elif p.ndim == 1:
            p.data = (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
        else:
            p.data = noise / math.sqrt(p[0].numel())
    return module.eval()


def ldm_checkpoint(unet: nn.Module, vae: nn.Module | None = None, vocoder: nn.Module | None = None,
                   clap: dict[str, Tensor] | None = None, scale_factor: float = 0.9, averaged: bool = True) -> dict:
    """A checkpoint as Lightning 1 wrote it: the average's names lost their dots, the schedule is in buffers."""
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    state = {"betas": betas.float(), "alphas_cumprod": torch.cumprod(1 - betas, 0).float(),
             "logvar": torch.zeros(1000), "scale_factor": torch.tensor(scale_factor)}
    raw = {f"diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    state |= {f"model.{name}": value for name, value in raw.items()}
    if averaged:
        state |= {f"model_ema.{name.replace('.', '')}": value * 0.5 for name, value in raw.items()}
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    if vae is not None:
        state |= {f"first_stage_model.{name}": value for name, value in vae.state_dict().items()}
        state["first_stage_model.loss.logvar"] = torch.zeros(())
    if vocoder is not None:
        state |= {f"first_stage_model.vocoder.{name}": value for name, value in vocoder.state_dict().items()}
    if clap is not None:
        state |= {f"cond_stage_model.model.{name}": value for name, value in clap.items()}
    return {"state_dict": state, "global_step": 450000, "epoch": 3, "pytorch-lightning_version": "1.9.4"}
