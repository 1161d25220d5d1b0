"""What a process of `forked` has imported before it is needed: what `musiccm`'s commands import, and the tests."""

import gc
from importlib import import_module

from musiccm.quiet import quiet_libraries

quiet_libraries()  # libraries read it when they are imported
for name in (
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition", "jsonargparse",
    "matplotlib.pyplot", "omegaconf", "pytest", "pytorch_lightning.cli", "soxr", "torch.utils.tensorboard",
    "transformers.models.clap.feature_extraction_clap", "transformers.models.clap.modeling_clap",
    "transformers.models.roberta.tokenization_roberta", "transformers.models.speecht5.modeling_speecht5",
    "musiccm.data.module", "musiccm.pipeline", "musiccm.systems.musiccm",
):
    import_module(name)
gc.freeze()  # what is collected here would be copied into every process that is forked
