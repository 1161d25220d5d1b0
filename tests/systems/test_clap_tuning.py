"""CLAP tuning: who gets a gradient, what the term is, which CLAP may score."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from short_fit import Save, fit, make_batches
from tiny_bundle import build_random_bundle, make_clap
from tiny_tokens import build_token_bundle
from transformers import ClapFeatureExtractor

from musiccm.callbacks.evaluation import Evaluation
from musiccm.cli import main
from musiccm.commands.pack import write_parts
from musiccm.config import load_experiment
from musiccm.data.batch import LatentBatch, WaveformBatch
from musiccm.errors import MusiccmError
from musiccm.evaluation.text_audio import measuring_clap, refuse_tuned
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import SECOND_CLAP, save_second_clap
from musiccm.systems.clap_tuned import EVALUATION, ClapTerm, ClapTunedSystem
from musiccm.systems.clap_tuning import ClapTuning
from musiccm.systems.lcm import LCM
from musiccm.systems.parallel import normal_like
from musiccm.systems.settings import Distillation, Optimization, Phase

CAPTIONS = ["slow organ chords", "a calm piano melody over soft strings"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bundle with a second CLAP, which takes sound at 24 kHz and reads with a tokenizer of the same captions."""
    path = build_random_bundle(tmp_path_factory.mktemp("bundle") / "b", decoder=True)
    tokenizer = Bundle.from_pretrained(path).tokenizer
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        second = make_clap(len(tokenizer), cond_width=24)
    extractor = ClapFeatureExtractor(
        feature_size=64, sampling_rate=24000, hop_length=240, max_length_s=1, fft_window_size=512, frequency_min=50,
        frequency_max=8000, truncation="rand_trunc", padding="repeatpad",
    )
    save_second_clap(path, second, tokenizer, extractor)
    return str(path)


def make(bundle: str, optimization: Optimization | None = None, **term: Any) -> ClapTuning:
    torch.manual_seed(0)
    distillation = Distillation(weight=term.pop("lambda_", 1.0), curriculum=[Phase(1.0, 100, 1)], eval_ema_decay=0.5)
    return ClapTuning(bundle, distillation, ClapTerm(**term), optimization or Optimization(lr=1e-3))


def batch_of(system: ClapTuning) -> LatentBatch:
    batch = make_batches(system, 1)[0]
    batch.captions = list(CAPTIONS)
    return batch


def answers(system: ClapTuning, batch: LatentBatch) -> tuple[torch.Tensor, torch.Tensor]:
    z0 = system.codec.normalise(batch.latents_BCTF)
    return z0, system.consistency("online")(z0, torch.tensor([499, 999]), batch.text_BD)


@pytest.fixture(scope="module", params=["original", "fast"])
def tuned(request: pytest.FixtureRequest, bundle: str) -> ClapTuning:
    return make(bundle, decoder=request.param)


def test_the_term_is_the_weighted_mean_of_cosines_by_the_bundles_own_clap(tuned: ClapTuning) -> None:
    """And so is its gradient, by what pipelines and evaluations embed with; the real side is the latent cache's."""
    batch = batch_of(tuned)
    z0, x0 = (latents.detach().requires_grad_() for latents in answers(tuned, batch))
    weight_B = torch.tensor([5.0, 0.25])
    total, parts = tuned.clap_term(batch, z0, x0, batch.text_BD, torch.Generator(), weight_B)
    fresh = Bundle.from_pretrained(tuned.bundle_name)
    clap, codec = fresh.conditioner(), fresh.codec(tuned.clap.decoder)
    fake_BD = clap.audio(codec.decode(x0), codec.mel.sample_rate_hz)
    to_text_B, to_real_B = (fake_BD * clap.text(CAPTIONS)).sum(1), (fake_BD * batch.audio_BD).sum(1)
    expected = 0.1 * (weight_B * (2 - to_text_B - to_real_B)).mean()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(parts["clap_text"], to_text_B.mean(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts["clap_real"], to_real_B.mean(), rtol=1e-4, atol=1e-5)
    found, slope = (torch.autograd.grad(loss, x0)[0] for loss in (total, expected))
    torch.testing.assert_close(found, slope, rtol=1e-3, atol=1e-3 * float(slope.abs().max()))
    assert slope.flatten(1).norm(dim=1).min() > 0


def test_the_gradient_reaches_the_student_and_nothing_frozen(tuned: ClapTuning) -> None:
    batch = batch_of(tuned)
    z0, x0 = answers(tuned, batch)
    tuned.zero_grad()
    tuned.clap_term(batch, z0, x0, batch.text_BD, torch.Generator())[0].backward()
    assert sum(float(p.grad.abs().sum()) for p in tuned.student.parameters() if p.grad is not None) > 0
    assert all(p.grad is None and not p.requires_grad for p in tuned.frozen.parameters())
    tuned.zero_grad()


@pytest.mark.parametrize("network", [None, "clap_second"])
def test_the_gradient_is_that_of_the_loss(bundle: str, network: str | None) -> None:
    """Central differences along the gradient itself: nothing between latents and embedding is cut off."""
    system = make(bundle, network=network, decoder="fast")
    clap, z = system.tuning_clap, torch.randn(2, 4, 8, 4)
    with torch.no_grad():
        text = clap.text(CAPTIONS)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return (system.clap_embedding(at) * text).sum()

    leaf = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf), leaf)
    size = float(slope.norm())
    step = 0.02 * slope / size
    with torch.no_grad():
        found = float(loss(z + step) - loss(z - step)) / 0.04
    assert size > 0 and found == pytest.approx(size, rel=0.1)


def test_another_clap_reads_the_captions_and_embeds_the_decoded_latents(bundle: str) -> None:
    system = make(bundle, network="clap_second", decoder="fast", weighting="uniform", weight=1.0)
    batch = batch_of(system)
    z0, x0 = answers(system, batch)
    total, _ = system.clap_term(batch, z0.requires_grad_(), x0, batch.text_BD, torch.Generator(),
                                torch.tensor([9.0, 1.0]))
    total.backward()
    assert z0.grad is None, "the student's sound goes to the real clip's, and not the other way"
    clap, codec = Bundle.from_pretrained(bundle).second_clap(), Bundle.from_pretrained(bundle).codec("fast")
    with torch.no_grad():
        fake_BD, real_BD = (clap.audio(codec.decode(z), 16000) for z in (x0, z0))
        expected = (2 - (fake_BD * clap.text(CAPTIONS)).sum(1) - (fake_BD * real_BD).sum(1)).mean()
    assert clap.front_end.sample_rate_hz == 24000
    # cut before the resampling and not behind it: the last samples of the window differ
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)


def test_a_bundle_of_tokens_is_tuned_by_a_clap_of_its_own(bundle: str, tmp_path: Path) -> None:
    tokens = str(build_token_bundle(tmp_path / "tokens"))
    with pytest.raises(MusiccmError, match=r"clap.network: expected the name of a CLAP, as the text encoder of .*none"):
        make(tokens)
    with pytest.raises(MusiccmError, match=r"clap.network: .* found one with tokens"):
        make(tokens, network=tokens)
    with pytest.raises(MusiccmError, match="clap.network: .*no second CLAP"):
        make(tokens, network="clap_second")
    for scores_by, refused in ((None, False), (bundle, True)):  # a bundle of tokens has no CLAP that scores by itself
        with pytest.raises(MusiccmError, match="the very network") if refused else nullcontext():
            ClapTuning.check_experiment({
                "model": {"init_args": {"bundle": tokens, "clap": {"network": bundle}}}, "subcommand": "fit",
                "trainer": {"callbacks": [{"class_path": EVALUATION, "init_args": {"text_audio": scores_by}}]}})
    system = make(tokens, network=bundle, decoder="fast", sample="one_step", weighting="uniform")
    raw = system.codec.denormalise(torch.randn(2, *system.bundle.latent_shape()))
    batch = LatentBatch(raw, system.conditioner.text(CAPTIONS), None, ["a", "b"], list(CAPTIONS))
    z0 = system.codec.normalise(raw)
    generator = torch.Generator().manual_seed(3)
    total, parts = system.clap_term(batch, z0, torch.zeros_like(z0), batch.text_BD, generator)
    assert torch.isfinite(total) and system.tuning_clap.width == 32
    total.backward()
    assert sum(float(p.grad.abs().sum()) for p in system.student.parameters() if p.grad is not None) > 0
    # one_step: the student's answer to noise at the last grid point, and not the one that was given
    noise = normal_like(z0, torch.Generator().manual_seed(3))
    with torch.no_grad():
        x0 = system.consistency("online")(noise, torch.tensor([999, 999]), batch.text_BD)
        embedded = system.clap_embedding(x0)
        expected = (embedded * system.tuning_clap.text(CAPTIONS)).sum(1).mean()
    torch.testing.assert_close(parts["clap_text"], expected, rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_the_same_gradient_clip_by_clip(tuned: ClapTuning) -> None:
    leaf, text = torch.randn(2, 4, 8, 4), tuned.conditioner.text(CAPTIONS).detach()
    sizes: list[int] = []
    handle = tuned.conditioner.clap.audio_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_features"])), with_kwargs=True)
    found = []
    before = tuned.optimization
    for recompute in (False, True):
        tuned.optimization = Optimization(gradient_checkpointing=recompute)
        at = leaf.clone().requires_grad_()
        (slope,) = torch.autograd.grad((tuned.clap_embedding(at) * text).sum(), at)
        found.append(slope)
    handle.remove()
    tuned.optimization = before
    assert sizes == [2, 1, 1, 1, 1]
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6 + 1e-4 * float(found[0].abs().max()))


def test_checkpointing_gives_the_same_student(bundle: str) -> None:
    """Of whole steps through the VAE's decoder, which computes its own activations a second time within."""
    found = []
    for recompute in (False, True):
        system = make(bundle, Optimization(lr=1e-3, gradient_checkpointing=recompute), weight=1.0)
        fit(system, [batch_of(system)], 2)
        found.append(torch.cat([p.detach().flatten() for p in system.student.parameters()]))
    first = torch.cat([p.detach().flatten() for p in make(bundle).student.parameters()])
    assert float((found[0] - first).norm()) > 100 * float((found[1] - found[0]).norm())


class Weighted(ClapTunedSystem, LCM):
    """An objective that is without the term by default and weighs its items."""

    def __init__(self, bundle: str = "musiccm-tiny", distillation: Distillation | None = None,
                 clap: ClapTerm | None = None, optimization: Optimization | None = None, seed: int = 0) -> None:
        super().__init__(clap, bundle=bundle, distillation=distillation, optimization=optimization, seed=seed)
        self.finish_init()

    def objective(
        self, batch: LatentBatch, z0: torch.Tensor, cond_BD: Any, generator: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
        x0, loss, parts = self.distil(z0, cond_BD, generator)
        loss_clap, more = self.clap_term(batch, z0, x0, cond_BD, generator, torch.tensor([3.0, 3.0]))
        return loss + loss_clap, parts | more, None


def test_another_objective_takes_the_term_with_its_own_weights(bundle: str, tmp_path: Path) -> None:
    def run(weight: float | None, steps: int = 1, **options: Any) -> tuple[Weighted, dict[str, float]]:
        torch.manual_seed(0)
        term = None if weight is None else ClapTerm(weight, decoder="fast")
        system = Weighted(bundle, Distillation(curriculum=[Phase(1.0, 100, 1)]), term, Optimization(lr=1e-3))
        trainer = fit(system, [batch_of(system)], steps, **options)
        return system, {key.removeprefix("train/"): float(value) for key, value in trainer.callback_metrics.items()}

    without, alone = run(None, callbacks=[Save(tmp_path / "old.ckpt", 1)])
    system, logged = run(0.1)
    assert without.tuning_clap is None and "loss_clap" not in alone
    assert logged["loss_distil"] == alone["loss_distil"] == alone["loss"], "the same draws"
    expected = 3.0 * (2 - logged["clap_text"] - logged["clap_real"])
    assert logged["loss_clap"] == pytest.approx(expected, rel=1e-4)
    assert logged["loss"] == pytest.approx(logged["loss_distil"] + 0.1 * expected, rel=1e-4)
    # a checkpoint of before the objective took the term was trained without it
    kept = torch.load(tmp_path / "old.ckpt", weights_only=True)
    assert kept["student"].pop("clap.weight") == 0
    torch.save(kept, tmp_path / "old.ckpt")
    assert run(None, 2, ckpt_path=tmp_path / "old.ckpt")[0].batches_seen == 2
    with pytest.raises(MusiccmError, match=r"clap.weight: it was trained with 0.0, this run has 0.1"):
        run(0.1, 2, ckpt_path=tmp_path / "old.ckpt")


def test_under_bf16_latents_are_made_sound_and_embedded_in_float32(tuned: ClapTuning) -> None:
    z = torch.randn(2, 4, 8, 4).bfloat16()
    with torch.no_grad():
        expected = tuned.clap_embedding(z.float())
        with torch.autocast("cpu", torch.bfloat16):
            found = tuned.clap_embedding(z)
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_a_few_steps_raise_the_score_of_the_clap_that_tunes(bundle: str) -> None:
    """On random weights, by the term alone, of samples from noise that training does not see."""
    system = make(bundle, Optimization(lr=3e-3), lambda_=0.0, weight=1.0, decoder="fast", sample="one_step",
                  weighting="uniform")
    batch = batch_of(system)
    noise = torch.randn(2, 4, 8, 4, generator=torch.Generator().manual_seed(99))

    @torch.no_grad()
    def score() -> float:
        x0 = system.consistency("online")(noise, torch.tensor([999, 999]), batch.text_BD)
        return float((system.clap_embedding(x0) * (batch.audio_BD + system.conditioner.text(CAPTIONS))).sum(1).mean())

    before = score()
    frozen = {name: value.clone() for name, value in system.frozen.state_dict().items()}
    trainer = fit(system, [batch], 12)
    assert score() > before + 0.02
    assert all(torch.equal(value, frozen[name]) for name, value in system.frozen.state_dict().items())
    assert {"train/loss_clap", "train/clap_text", "train/clap_real", "train/loss_distil"} <= set(
        trainer.callback_metrics)


def test_a_resumed_run_comes_to_the_same_bits(bundle: str, tmp_path: Path) -> None:
    def run(steps: int, **options: Any) -> ClapTuning:
        system = make(bundle, Optimization(lr=1e-3, gradient_checkpointing=True), decoder="fast")
        fit(system, [batch_of(system)], steps, **options)
        return system

    through = run(3, callbacks=[Save(tmp_path / "2.ckpt", 2)])
    kept = torch.load(tmp_path / "2.ckpt", weights_only=True)
    assert not any(name.startswith("frozen") for name in kept["state_dict"])
    resumed = run(3, ckpt_path=tmp_path / "2.ckpt")
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in through.state_dict().items())
    other = make(bundle, network="clap_second", decoder="fast")
    with pytest.raises(MusiccmError, match=r"clap.network: it was trained with 'CLAP \w{12}', this run has 'CLAP"):
        fit(other, [batch_of(other)], 3, ckpt_path=tmp_path / "2.ckpt")


def test_a_clap_is_known_by_its_weights_and_not_by_its_name(bundle: str, tmp_path: Path) -> None:
    moved = shutil.copytree(bundle, tmp_path / "moved")
    own, named, second = (make(bundle, network=network) for network in (None, str(moved), "clap_second"))
    assert named.tuning_clap is named.conditioner, "read twice, held once"
    key = "clap.network"
    assert own.identity()[key] == named.identity()[key] != second.identity()[key]


def test_without_weight_no_clap_is_loaded(bundle: str) -> None:
    system = make(bundle, weight=0.0, network="nowhere")
    assert system.tuning_clap is None and "clap_codec" not in system.frozen
    batch = batch_of(system)
    total, parts = system.clap_term(batch, batch.latents_BCTF, batch.latents_BCTF, batch.text_BD, torch.Generator())
    assert total == 0 and parts == {}
    assert {key for key in system.identity() if key.startswith("clap.")} == {"clap.weight"}


@pytest.mark.parametrize(("term", "said"), [
    ({"decoder": "vocoder"}, r"clap.decoder: expected one of fast, original, found 'vocoder'"),
    ({"sample": "one_step"}, r"clap.weighting: expected uniform where clap.sample is one_step"),
    ({"weight": float("nan")}, r"clap.weight: expected a finite number from 0 on"),
    ({"weighting": "snr"}, r"clap.weighting: expected one of distillation, uniform"),
])
def test_settings_are_refused_before_a_bundle_is_read(term: dict[str, Any], said: str) -> None:
    with pytest.raises(MusiccmError, match=said):
        make("no/such/bundle", **term)


def test_a_decoder_that_is_not_there_is_refused(bundle: str, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(bundle, tmp_path / "bare"))
    shutil.rmtree(bare / "decoder")
    with pytest.raises(MusiccmError, match="clap.decoder: .*has no fast decoder"):
        make(str(bare), decoder="fast")


def test_a_clip_without_a_caption_is_refused(tuned: ClapTuning) -> None:
    batch = batch_of(tuned)
    z0 = tuned.codec.normalise(batch.latents_BCTF)
    for captions, named in ((["slow organ chords", " "], "1"), ([], "the batch")):
        batch.captions = captions
        with pytest.raises(MusiccmError, match=f"clap.weight: expected a caption for every clip, .* none for {named}"):
            tuned.clap_term(batch, z0, z0, batch.text_BD, torch.Generator())


def test_the_clap_that_scores_is_another_one(
    bundle: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def check(network: str | None, scores_by: str | None, **term: Any) -> None:
        ClapTuning.check_experiment({
            "model": {"init_args": {"bundle": bundle, "clap": {"network": network, **term}}}, "subcommand": "fit",
            "trainer": {"callbacks": [{"class_path": EVALUATION, "init_args": {"text_audio": scores_by}}]}})

    moved = str(shutil.copytree(Path(bundle) / "text_encoder", tmp_path / "moved"))
    refused = "evaluation.text_audio: expected a CLAP that the student is not trained on, found the very network of"
    for network, scores_by in ((None, None), (None, bundle), (bundle, moved), (moved, None),
                               ("clap_second", "clap_second"), ("owner/name", "owner/name")):
        with pytest.raises(MusiccmError, match=refused):
            check(network, scores_by)
    check(None, "clap_second")
    check("clap_second", None)
    check(None, "none")
    check(None, None, weight=0.0)
    # in another format the files differ and the network does not: found once it is read
    own = Bundle.from_pretrained(bundle)
    again = tmp_path / "again"
    for part in (copy.deepcopy(own.clap).double(), own.tokenizer, own.feature_extractor):
        part.save_pretrained(again)
    check(None, str(again))
    system = make(bundle, decoder="fast")
    with pytest.raises(MusiccmError, match=refused):
        refuse_tuned(measuring_clap(system.bundle, str(again)), system)
    for scores_by in (None, "clap_second", "none"):
        evaluation = Evaluation(text_audio=scores_by)
        if scores_by is None:
            with pytest.raises(MusiccmError, match=refused):
                evaluation.setup(None, system, "fit")  # type: ignore[arg-type]
            continue
        evaluation.setup(None, system, "fit")  # type: ignore[arg-type]
        assert not caplog.messages
        measuring = measuring_clap(system.bundle, scores_by)
        assert (measuring and measuring.name) == (None if scores_by == "none" else "clap_second")
    # distances in its features are no similarity, and are warned of
    Evaluation(text_audio="none", embedders=["clap"]).setup(None, system, "fit")  # type: ignore[arg-type]
    assert ["evaluation.embedders: bundle_clap is the CLAP" in message for message in caplog.messages] == [True]
    caplog.clear()
    other = make(bundle, network="clap_second", decoder="fast")
    Evaluation(embedders=["clap"]).setup(None, other, "fit")  # type: ignore[arg-type]
    assert not caplog.messages, "the other CLAP's"


def test_fit_refuses_it_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    scores_by = load_experiment("tta/clap_tuning_demo")["trainer"]["callbacks"][1]["init_args"]["text_audio"]
    given = ["fit", "--config", "tta/clap_tuning_demo", "--model.init_args.clap.network", scores_by]
    assert main(given) == 2
    assert f"found the very network of model.init_args.clap.network ({scores_by})" in capsys.readouterr().err
    assert not (tmp_path / "lightning_logs").exists()


def test_a_second_clap_is_packed_with_what_it_reads_by(bundle: str, tmp_path: Path) -> None:
    opened = Bundle.from_pretrained(bundle)
    batch = WaveformBatch(0.1 * torch.randn(2, 20480), torch.zeros(2, 0), ["a", "b"], list(CAPTIONS))
    chosen = write_parts(opened, {SECOND_CLAP}, tmp_path / "packed", batch, tolerance=0.5)
    assert chosen[SECOND_CLAP]["dtype"] == "float16" and chosen[SECOND_CLAP]["relative_change"] > 0
    packed = Bundle(tmp_path / "packed", {}, {}, torch.float32).second_clap()
    before = opened.second_clap()
    assert packed.front_end.sample_rate_hz == 24000 and SECOND_CLAP not in opened.index
    torch.testing.assert_close(packed.text(CAPTIONS), before.text(CAPTIONS), rtol=0, atol=2e-2)
    (tmp_path / "packed" / SECOND_CLAP / "preprocessor_config.json").unlink()
    with pytest.raises(MusiccmError, match=r"preprocessor_config.json: not found; this CLAP's feature_extractor"):
        Bundle(tmp_path / "packed", {}, {}, torch.float32).second_clap()
