"""Everything with weights: bundle, codec, conditioner, denoiser, EMA, feature networks, discriminator heads, tagger."""
