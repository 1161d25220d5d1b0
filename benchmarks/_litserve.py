"""A server of LitServe's for the benchmark of serving, as its documentation has one: a worker a core, and batches."""

from __future__ import annotations

import os
import sys
from typing import Any

import litserve
import torch
from fastapi import Response

from musiccm.audio.io import encoded_audio
from musiccm.pipeline import Pipeline

BATCH = 8


class Music(litserve.LitAPI):
    """Clips of up to `BATCH` requests together, of one thread.

    Args:
        bundle: The model.
    """

    def __init__(self, bundle: str) -> None:
        super().__init__(max_batch_size=BATCH, batch_timeout=0.01, api_path="/v1/audio/generate")
        self.bundle = bundle

    def setup(self, device: str) -> None:
        """Load the model, in the worker."""
        torch.set_num_threads(1)
        self.pipeline = Pipeline.from_pretrained(self.bundle).accelerate()
        self.pipeline("music", 1)

    def predict(self, x: list[dict[str, Any]]) -> list[torch.Tensor]:
        """Waveforms of a batch of requests; the benchmark's have one number of steps."""
        (steps,) = {body["num_inference_steps"] for body in x}
        return list(self.pipeline([body["input"] for body in x], steps, [body["seed"] for body in x],
                                  batch_size=BATCH, level="loudness"))

    def encode_response(self, output: torch.Tensor) -> Response:
        """A waveform as a file."""
        made = encoded_audio(output, self.pipeline.sample_rate_hz, ".wav", "x")
        return Response(bytes(made), media_type="audio/wav")


if __name__ == "__main__":
    litserve.LitServer(
        Music(sys.argv[1]), accelerator="cpu", workers_per_device=os.cpu_count() or 1, timeout=False,
        healthcheck_path="/ready",
    ).run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False, log_level="error")
