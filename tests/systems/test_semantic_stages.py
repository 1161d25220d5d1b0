"""From a corpus to a language model of its tokens: the tokenizer's stage, `musiccm prepare tokens`, the model's."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning.callbacks import ModelCheckpoint
from small_cache import write_all
from small_corpus import write_corpus
from tiny_bundle import build_random_bundle

from musiccm.audio import fixed_window, read_audio
from musiccm.cli import main
from musiccm.config import load_experiment
from musiccm.data.batch import LatentBatch, TokenBatch
from musiccm.data.latent_cache.files import CacheWriter
from musiccm.data.latent_cache.window_index import WindowIndex
from musiccm.data.module import MusicDataModule
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.melody.features import load_source
from musiccm.models.melody.semantic_lm import SemanticLM, SemanticLMConfig
from musiccm.models.melody.tokenizer import SemanticTokenizer, tokenizer_of
from musiccm.systems.stages.base import Stage
from musiccm.systems.stages.semantic_lm import SemanticLMStage
from musiccm.systems.stages.semantic_tokens import SemanticTokenStage, purity
from musiccm.texts import read_json

SAMPLES = 20480  # 1.28 s: what the small bundle's U-Net takes, and 32 tokens
LM = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 48, "prefix_codes": 3, "prefix_codebook": 8}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_bundle(tmp_path_factory.mktemp("bundle"))


def trainer(root: Path, max_steps: int, **more: Any) -> pl.Trainer:
    options = {"logger": False, "enable_checkpointing": False} | more
    return pl.Trainer(
        max_steps=max_steps, max_epochs=-1, accelerator="cpu", default_root_dir=root, val_check_interval=4,
        num_sanity_val_steps=0, check_val_every_n_epoch=None, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )


def fit_tokenizer(
    corpus: Path, bundle: Path, work: Path, steps: int = 9, resume: Path | None = None, **options: Any
) -> SemanticTokenStage:
    stage = SemanticTokenStage("tagger", str(bundle), codebook=24, width=20, statistics_steps=3, bundle=str(work))
    data = MusicDataModule(str(corpus), clip_samples=SAMPLES, batch_size=6, val_clips=2)
    trainer(work, steps, **options).fit(stage, datamodule=data, ckpt_path=resume,
                                        weights_only=True if resume else None)
    return stage


@pytest.fixture(scope="module")
def work(corpus: Path, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tokenizer, and a checkpoint of its stage in the middle."""
    folder = tmp_path_factory.mktemp("work")
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=5, save_top_k=-1)
    fit_tokenizer(corpus, bundle, folder, enable_checkpointing=True, callbacks=[saver])
    return folder


def test_the_stage_leaves_a_tokenizer_and_says_how_good_it_is(work: Path, bundle: Path) -> None:
    tokenizer = tokenizer_of(work)
    assert (tokenizer.codebook, tokenizer.width, tokenizer.config.features) == (24, 20, 96)
    found = read_json(work / "quality" / "semantic_tokens.json", "what a stage measured")
    assert found["n"] == 2 and found["steps"] == 8 and 0 < found["distortion"] < 0.8
    assert 1 < found["perplexity"] <= found["used"] <= 24
    tokenizer.use(load_source("tagger", bundle))
    tones = torch.stack([torch.sin(torch.arange(SAMPLES) * pitch) for pitch in (0.1, 0.3)]) * 0.3
    ids = tokenizer.ids(tones, 16000)
    assert ids.shape == (2, 32) and ids[0, 8:24].unique().tolist() != ids[1, 8:24].unique().tolist()


def test_a_resumed_fit_ends_with_the_same_bits(corpus: Path, bundle: Path, work: Path, tmp_path: Path) -> None:
    resumed = fit_tokenizer(corpus, bundle, tmp_path, resume=work / "step=5.ckpt")
    whole = SemanticTokenizer.from_pretrained(work / "semantic_tokenizer")
    assert resumed.part.fingerprint == whole.fingerprint
    with pytest.raises(MusiccmError, match="codebook"):
        stage = SemanticTokenStage("tagger", str(bundle), codebook=16, width=20, statistics_steps=3)
        data = MusicDataModule(str(corpus), clip_samples=SAMPLES, batch_size=6, val_clips=2)
        trainer(tmp_path, 9).fit(stage, datamodule=data, ckpt_path=work / "step=5.ckpt", weights_only=True)


def test_purity_by_a_count_of_ones_own() -> None:
    ids = torch.tensor([[0, 0, 1], [0, 1, 1], [2, 2, 2]])
    # token 0: a, a, b; token 1: a, b, b; token 2: b three times
    assert purity(ids, ["a", "b", "b"]) == ((2 + 2 + 3) / 9, 2 / 3)


def test_a_fit_that_cannot_be_is_refused(corpus: Path, bundle: Path, tmp_path: Path) -> None:
    stage = SemanticTokenStage("tagger", str(bundle), codebook=8, bundle=str(tmp_path))
    with pytest.raises(MusiccmError, match="no whole number of tokens"):
        trainer(tmp_path, 2).fit(stage, datamodule=MusicDataModule(str(corpus), clip_samples=SAMPLES + 1))
    with pytest.raises(MusiccmError, match="batches were all measured"):
        trainer(tmp_path, 1).fit(stage, datamodule=MusicDataModule(str(corpus), clip_samples=SAMPLES, batch_size=6))
    with pytest.raises(MusiccmError, match=r"model\.init_args\.width: expected a whole number above 0"):
        SemanticTokenStage("tagger", str(bundle), width=0)
    with pytest.raises(MusiccmError, match="neither an average nor weights to start from"):
        SemanticTokenStage("tagger", str(bundle), ema_decay=0.9)


@pytest.fixture(scope="module")
def experiment(corpus: Path, bundle: Path, work: Path) -> Path:
    """An experiment with tokens, and latents of the same windows that no VAE made."""
    data = {"root": str(corpus), "kind": "tokens", "bundle": str(bundle), "tokenizer": str(work), "batch_size": 6,
            "tokens_dir": str(work / "tokens"), "cache_dir": str(work / "latents"), "clip_samples": SAMPLES,
            "val_clips": 2, "windows_per_track": 2}
    path = work / "x.yaml"
    path.write_text(yaml.safe_dump({"data": {"class_path": "musiccm.data.module.MusicDataModule", "init_args": data}}))
    assert main(["prepare", "tokens", "--config", str(path), "--shard-size", "7", "--device", "cpu"]) == 0
    latents = MusicDataModule(**{**data, "kind": "waveform"})
    latents.setup("fit")
    index = WindowIndex.plan(latents.clips("train"), SAMPLES, 16000, 2)
    write_all(CacheWriter(work / "latents/train", latents.latent_key("train"), index))
    return path


def module(experiment: Path, **changed: Any) -> MusicDataModule:
    return MusicDataModule(**{**yaml.safe_load(experiment.read_text())["data"]["init_args"], **changed})


def test_the_cache_holds_what_the_tokenizer_says_of_each_window(experiment: Path, bundle: Path, work: Path) -> None:
    data = module(experiment)
    data.setup("test")
    tokenizer = tokenizer_of(work)
    tokenizer.use(load_source("tagger", bundle))
    cache, conditioner = data.token_cache("train"), Bundle.from_pretrained(bundle).conditioner()
    assert len(cache) == 40 and len(list((work / "tokens/train").glob("s*"))) == 6
    assert len(data.token_cache("test")) == 8
    rows = np.asarray([7, 30])
    sound = torch.stack([
        fixed_window(read_audio(data.clips("train")[cache.index.clip_of(row)].path)[0], SAMPLES,
                     int(cache.index.starts_N[row])) for row in rows
    ])
    assert torch.equal(cache.semantic(rows), tokenizer.ids(sound, 16000))
    torch.testing.assert_close(cache.audio(rows), conditioner.audio(sound, 16000), atol=1e-5, rtol=0)
    torch.testing.assert_close(cache.text(np.asarray([4])), conditioner.text([cache.index.captions[4]]), atol=1e-5,
                               rtol=0)


def test_an_ended_run_goes_on_to_the_same_bytes(experiment: Path, work: Path, capsys: Any) -> None:
    folder = work / "tokens" / "train"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "shard-00003.safetensors").unlink()
    (folder / "text-00000.safetensors").write_bytes(b"half a file")
    with pytest.raises(MusiccmError, match="1 of 7 files are missing, .* `musiccm prepare tokens` again"):
        module(experiment).setup("fit")
    assert main(["prepare", "tokens", "--config", str(experiment), "--device", "cpu"]) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "7 windows and" in capsys.readouterr().out, "one file of each kind"


def test_batches_carry_tokens_beside_latents_or_alone(experiment: Path) -> None:
    tokens, latents = module(experiment), module(experiment, kind="latent")
    both = []
    for data in (tokens, latents):
        data.setup("fit")
        both.append(list(data.train_dataloader()))
    for first, second in zip(*both, strict=True):
        assert isinstance(first, TokenBatch) and isinstance(second, LatentBatch)
        assert first.ids == second.ids and first.captions == second.captions
        assert torch.equal(first.semantic_BL, second.semantic_BL) and first.semantic_BL.shape == (6, 32)
    assert first.to(torch.device("cpu")).semantic_BL.dtype == torch.int64
    without = module(experiment, kind="latent", tokens_dir=None)
    without.setup("fit")
    assert next(iter(without.train_dataloader())).semantic_BL is None
    assert "tokenizer" in latents.training_key() and "tokenizer" not in without.training_key()


def test_a_cache_of_another_tokenizer_or_kind_is_refused(
    experiment: Path, corpus: Path, bundle: Path, work: Path, tmp_path: Path, capsys: Any
) -> None:
    fit_tokenizer(corpus, bundle, tmp_path, steps=5)  # fewer steps: other clusters
    with pytest.raises(MusiccmError, match="stale token cache: tokenizer is .* `musiccm prepare tokens"):
        module(experiment, tokenizer=str(tmp_path)).setup("fit")
    module(experiment, tokenizer=None).setup("fit")  # left unchecked
    command = ["prepare", "tokens", "--config", str(experiment), "--device", "cpu", "--tokenizer", str(tmp_path)]
    assert main(command) == 2
    assert "holds tokens of something else: tokenizer is" in capsys.readouterr().err
    with pytest.raises(MusiccmError, match="its format is 2, with a CLAP vector a caption; expected 4, semantic"):
        module(experiment, tokens_dir=str(work / "latents")).setup("fit")
    with pytest.raises(MusiccmError, match="its format is 4, .*; expected 2"):
        module(experiment, kind="latent", cache_dir=str(work / "tokens")).setup("fit")
    with pytest.raises(MusiccmError, match=r"data\.tokens_dir is needed where data\.kind is 'tokens'"):
        module(experiment, tokens_dir=None)
    assert main([*command[:6], "--tokens-dir", str(tmp_path / "t"), "--features", str(tmp_path)]) == 2
    assert main(["prepare", "tokens", "--config", str(experiment), "--tokenizer", str(tmp_path / "no")]) == 2
    assert "no bundle here; expected a folder with semantic_tokenizer/" in capsys.readouterr().err
    stated = yaml.safe_load(experiment.read_text())
    del stated["data"]["init_args"]["tokenizer"]
    (tmp_path / "y.yaml").write_text(yaml.safe_dump(stated))
    assert main(["prepare", "tokens", "--config", str(tmp_path / "y.yaml")]) == 2
    assert "data.init_args.tokenizer is needed to make tokens" in capsys.readouterr().err


def fit_lm(experiment: Path, out: Path, steps: int = 8, resume: Path | None = None, **options: Any) -> SemanticLMStage:
    stage = SemanticLMStage(LM, bundle=str(out), lr=3e-3, warmup_steps=2, ema_decay=0.9, text_share=0.5)
    trainer(out, steps, **options).fit(stage, datamodule=module(experiment), ckpt_path=resume,
                                       weights_only=True if resume else None)
    return stage


@pytest.fixture(scope="module")
def planned(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SemanticLMStage]:
    out = tmp_path_factory.mktemp("lm")
    saver = ModelCheckpoint(out, "{step}", every_n_train_steps=4, save_top_k=-1)
    return out, fit_lm(experiment, out, steps=40, enable_checkpointing=True, callbacks=[saver])


def test_the_language_model_learns_and_writes_tokens_of_its_tokenizer(
    planned: tuple[Path, SemanticLMStage], experiment: Path, work: Path
) -> None:
    out, stage = planned
    found = read_json(out / "quality" / "semantic_lm.json", "what a stage measured")
    assert found["nll_uniform"] == pytest.approx(math.log(24)) and found["nll_audio"] < 0.9 * math.log(24)
    assert found["n"] == 2 and {"nll_text", "nll_other"} <= found.keys()
    model = SemanticLM.from_pretrained(out / "semantic_lm", tokenizer_of(work))
    assert (model.config.codebook, model.config.tokens, model.config.joint_width) == (24, 32, 32)
    data = module(experiment)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    ids = model.generate(model.prefix(batch.text_BD), 50, [0, 1], temperature=0.9, top_k=12)
    assert tokenizer_of(work).vectors(ids).shape == (2, 50, 20)
    # half precision on the disk, the prefix' codebooks as they were
    best: Any = stage.best
    assert torch.equal(model.rvq.codebooks_QKD, best.rvq.codebooks_QKD)
    torch.testing.assert_close(model(model.prefix(batch.text_BD), batch.semantic_BL),
                               best(best.prefix(batch.text_BD), batch.semantic_BL), atol=2e-2, rtol=0)
    # the codebooks are of the training windows' own embeddings: codes come close to them
    rows = data.latent_rows("train")
    unit = torch.nn.functional.normalize(data.token_cache("train").audio(rows), dim=1)
    left = (unit - model.rvq.decode(model.prefix(unit))).square().sum(1).mean()
    assert left < 0.5 * (unit - unit.mean(0)).square().sum(1).mean()


def test_a_resumed_language_model_ends_with_the_same_weights(experiment: Path, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    whole = fit_lm(experiment, tmp_path, enable_checkpointing=True, callbacks=[saver])
    resumed = fit_lm(experiment, tmp_path / "again", resume=tmp_path / "step=5.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_what_a_language_model_cannot_read_is_refused(experiment: Path, corpus: Path, tmp_path: Path) -> None:
    def fit(stage: Stage, data: MusicDataModule) -> None:
        trainer(tmp_path, 1).fit(stage, datamodule=data)

    with pytest.raises(MusiccmError, match=r"data\.kind: .*expected 'tokens', found 'waveform'"):
        fit(SemanticLMStage(LM), MusicDataModule(str(corpus)))
    with pytest.raises(MusiccmError, match=r"data\.tokenizer: expected the bundle"):
        fit(SemanticLMStage(LM), module(experiment, tokenizer=None))
    with pytest.raises(MusiccmError, match=r"lm\.codebook is 1024, and the tokens in .* have 24"):
        fit(SemanticLMStage({**LM, "codebook": 1024}), module(experiment))
    with pytest.raises(MusiccmError, match="different vectors for 64 codes; lower prefix_codebook"):
        fit(SemanticLMStage({**LM, "prefix_codebook": 64}), module(experiment))
    with pytest.raises(MusiccmError, match=r"text_share: expected a share in \[0, 1\]"):
        SemanticLMStage(LM, text_share=1.5)


@pytest.mark.parametrize(
    ("name", "millions", "tokens"), [("stages/semantic_lm", 2.66, 128), ("semantic_lm", 429.97, 250)]
)
def test_experiments_state_the_sizes_that_they_say(name: str, millions: float, tokens: int) -> None:
    content, codes = load_experiment(f"melody/{name}"), load_experiment(f"melody/{name[:-2]}tokens")
    settings, data = content["model"]["init_args"], content["data"]["init_args"]
    codebook = codes["model"]["init_args"]["codebook"]
    with torch.device("meta"):
        model = SemanticLM(SemanticLMConfig(**settings["lm"], codebook=codebook, tokens=tokens))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert tokens * data["sample_rate_hz"] == data["clip_samples"] * 25
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(pl.LightningModule, "model")
    for experiment in (content, codes):
        parser.parse_object({"model": experiment["model"]})
        assert experiment["model"]["init_args"]["bundle"] == data["tokenizer"]
    for key in ("clip_samples", "sample_rate_hz", "corpora", "root"):
        assert codes["data"]["init_args"].get(key) == data.get(key)
