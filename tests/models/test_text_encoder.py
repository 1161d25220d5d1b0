"""Text encoders that give tokens, against transformers called directly, and as part of a bundle."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bundle import CAPTIONS, make_clap, make_unet
from tiny_tokens import WIDTH, build_token_bundle, make_t5_tokenizer, make_token_unet, t5_config
from transformers import (
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from musiccm import load_embedder
from musiccm.data.latent_cache.fingerprint import bundle_fingerprint
from musiccm.errors import MusiccmError
from musiccm.models.bundle import Bundle
from musiccm.models.bundle.files import save_part
from musiccm.models.bundle.tokenizer import train_tokenizer
from musiccm.models.conditioners.prompt_memory import Conditioner
from musiccm.models.conditioners.text_encoder import TextEncoderConditioner
from musiccm.pipeline import Pipeline
from musiccm.systems.musiccm import MusicCM
from musiccm.systems.settings import Adversarial, Distillation
from musiccm.systems.stages.teacher import TeacherStage


def t5() -> TextEncoderConditioner:
    tokenizer = make_t5_tokenizer()
    return TextEncoderConditioner(T5EncoderModel(t5_config(len(tokenizer))), tokenizer)


def bert() -> TextEncoderConditioner:
    """With places of its own for each token, and a tokenizer that would pad in front."""
    pieces = make_t5_tokenizer().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>", padding_side="left",
                                        model_input_names=["input_ids", "attention_mask"])
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=60, pad_token_id=0)
    return TextEncoderConditioner(BertModel(config), tokenizer)


@pytest.fixture(scope="module", params=[t5, bert])
def conditioner(request: pytest.FixtureRequest) -> TextEncoderConditioner:
    torch.manual_seed(0)
    return request.param()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_token_bundle(tmp_path_factory.mktemp("tokens") / "bundle")


@pytest.fixture
def own(shared: Path, tmp_path: Path) -> Path:
    return shutil.copytree(shared, tmp_path / "b")


def directly(conditioner: TextEncoderConditioner, text: str) -> torch.Tensor:
    """What transformers itself gives for a text alone."""
    tokens = conditioner.tokenizer([text], return_tensors="pt")
    return conditioner.encoder(tokens.input_ids).last_hidden_state[0]


def fingerprint_of(folder: Path) -> str:
    return bundle_fingerprint(Bundle.from_pretrained(folder, parts=()))


def test_tokens_are_the_librarys_alone_and_in_a_batch(conditioner: TextEncoderConditioner, device: str) -> None:
    ours = copy.deepcopy(conditioner).to(device).text([*CAPTIONS, ""])
    assert ours.tokens_BLD.shape[2] == conditioner.width == WIDTH
    for caption, tokens, mask in zip([*CAPTIONS, ""], ours.tokens_BLD.cpu(), ours.mask_BL.cpu(), strict=True):
        theirs = directly(conditioner, caption)
        torch.testing.assert_close(tokens[: len(theirs)], theirs, rtol=1e-4, atol=1e-5)
        assert mask.tolist() == [True] * len(theirs) + [False] * (len(mask) - len(theirs))
        assert not tokens[len(theirs) :].any(), "nothing stands under padding"
    assert ours.mask_BL.sum(1).unique().numel() > 2, "the texts are of several lengths"


def test_padding_to_few_lengths_changes_tokens_by_rounding_alone(
    conditioner: TextEncoderConditioner, device: str
) -> None:
    ours = copy.deepcopy(conditioner).to(device)
    texts = [*CAPTIONS, ""]
    plain = [ours.text([text]) for text in texts]
    ours.few_lengths = True
    assert {ours.tokenized([text])[0].shape[1] for text in texts} == {32, ours.max_tokens}
    for text, expected in zip(texts, plain, strict=True):
        found = ours.text([text])
        assert torch.equal(found.mask_BL.cpu(), expected.padded(found.mask_BL.shape[1]).mask_BL.cpu())
        torch.testing.assert_close(found.unpadded, expected.unpadded, rtol=1e-4, atol=1e-5)
        assert not found.tokens_BLD[~found.mask_BL].any()
    longest = ours.padded(*ours.tokenized(texts), ours.max_tokens)
    torch.testing.assert_close(ours.encode(*(part.to(device) for part in longest)).unpadded,
                               torch.cat([row.unpadded for row in plain]), rtol=1e-4, atol=1e-5)


def test_null_is_the_empty_text_under_its_own_mask(conditioner: TextEncoderConditioner) -> None:
    null = conditioner.null(3)
    assert null.mask_BL.tolist() == [[True] * len(conditioner.tokenizer("").input_ids)] * 3
    for tokens in null.tokens_BLD:
        assert torch.equal(tokens, directly(conditioner, ""))


def test_prompts_are_remembered_and_do_not_depend_on_each_other(
    conditioner: TextEncoderConditioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    text = TextEncoderConditioner.text
    monkeypatch.setattr(TextEncoderConditioner, "text", lambda self, texts: asked.append(texts) or text(self, texts))
    conditioner.to("cpu")  # forgets
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = conditioner.prompts([CAPTIONS[1], CAPTIONS[2], CAPTIONS[1]])
    assert asked == [[CAPTIONS[1]], [CAPTIONS[2]]]
    for row, caption in enumerate([CAPTIONS[1], CAPTIONS[2], CAPTIONS[1]]):
        tokens = found.tokens_BLD[row][found.mask_BL[row]]
        assert torch.equal(tokens, directly(conditioner, caption)), "to the bit, under autocast too"
    again = conditioner.prompts(CAPTIONS[1:2])
    assert len(asked) == 2 and not again.tokens_BLD.is_inference() and not again.tokens_BLD.requires_grad


def test_a_text_that_is_too_long_is_cut_where_the_positions_end(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = train_tokenizer(CAPTIONS * 2, vocab_size=300)
    network = RobertaModel(RobertaConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1,
                                         num_attention_heads=1, intermediate_size=8, max_position_embeddings=12,
                                         pad_token_id=1))
    conditioner = TextEncoderConditioner(network, tokenizer)
    assert conditioner.text(["piano " * 50, "a"]).mask_BL.sum(1).tolist()[0] == 10
    assert "is cut to the 10 that the text encoder reads" in caplog.text
    assert conditioner.prompts(["piano"]).mask_BL.shape[1] < 10
    count = len(tokenizer("piano " * 50).input_ids)
    with pytest.raises(MusiccmError, match=f"prompt: expected at most 10 tokens.* found {count} in 'piano .*; shorten"):
        conditioner.prompts(["a", "piano " * 50])
    assert conditioner.prompts(["piano " * 50], whole=False).mask_BL.sum() == 10


def test_what_does_not_fit_or_is_not_there_is_refused() -> None:
    conditioner = t5()
    assert not conditioner.has_audio and isinstance(conditioner, Conditioner)
    for ask in (lambda: conditioner.audio(torch.zeros(1, 100), 16000), lambda: conditioner.front_end):
        with pytest.raises(MusiccmError, match="T5EncoderModel, which reads text and embeds no audio"):
            ask()
    with pytest.raises(MusiccmError, match="non-empty list of texts"):
        conditioner.text("one")  # type: ignore[arg-type]
    few = T5EncoderModel(t5_config(10))
    with pytest.raises(MusiccmError, match="tokens, but text_encoder was made for 10"):
        TextEncoderConditioner(few, conditioner.tokenizer)
    silent = PreTrainedTokenizerFast(tokenizer_object=train_tokenizer(CAPTIONS).backend_tokenizer)
    with pytest.raises(MusiccmError, match="expected a pad_token"):
        TextEncoderConditioner(conditioner.encoder, silent)


def test_a_bundle_comes_back_as_it_was_saved(shared: Path, tmp_path: Path) -> None:
    first = Bundle.from_pretrained(shared)
    assert first.gives_tokens and type(first.conditioner()) is TextEncoderConditioner
    assert json.loads((shared / "model_index.json").read_text())["text_encoder"] == ["transformers", "T5EncoderModel"]
    for name in ("text_encoder", "tokenizer", "unet", "vae"):
        save_part(tmp_path / "copy", name, first.part(name))
    second = Bundle.from_pretrained(tmp_path / "copy", ["text_encoder", "tokenizer", "feature_extractor"])
    assert type(second.text_encoder) is T5EncoderModel
    ours, theirs = first.conditioner().text(CAPTIONS), second.conditioner().text(CAPTIONS)
    assert torch.equal(ours.tokens_BLD, theirs.tokens_BLD) and torch.equal(ours.mask_BL, theirs.mask_BL)
    with pytest.raises(MusiccmError, match="text_encoder: is a t5 encoder.*needs a CLAP"):
        _ = first.clap
    for ask in (lambda: load_embedder("clap", bundle=str(shared)), lambda: first.content_hash(["feature_extractor"])):
        with pytest.raises(MusiccmError, match="embeds no audio"):
            ask()


def test_a_whole_t5_serves_by_its_encoder(own: Path) -> None:
    torch.manual_seed(1)
    whole = T5ForConditionalGeneration(t5_config(len(make_t5_tokenizer()))).eval()
    shutil.rmtree(own / "text_encoder")
    whole.save_pretrained(own / "text_encoder")
    conditioner = Bundle.from_pretrained(own).conditioner()
    ids = conditioner.tokenizer(CAPTIONS[:1], return_tensors="pt").input_ids
    torch.testing.assert_close(conditioner.text(CAPTIONS[:1]).tokens_BLD, whole.encoder(ids).last_hidden_state)
    path = own / "text_encoder/model.safetensors"
    save_file({**load_file(path), "stray.weight": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(MusiccmError, match="weights unknown: stray.weight"):
        Bundle.from_pretrained(own).conditioner()


@pytest.mark.parametrize("key, value, said", [
    ("model_type", "gpt2", "model_type is 'gpt2'; expected CLAP, or a text encoder"),
    ("model_type", ["t5"], "model_type is"),
    ("auto_map", {"AutoModel": "planted.Model"}, "config.json: auto_map"),
    ("d_model", "wide", "text_encoder/config.json: not a text encoder's configuration"),
])
def test_a_text_encoder_that_is_none_is_named(own: Path, key: str, value: object, said: str) -> None:
    config = own / "text_encoder/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), key: value}))
    with pytest.raises(MusiccmError, match=said):
        Pipeline.from_pretrained(own)


def test_a_clap_beside_a_unet_that_attends_is_named(own: Path) -> None:
    save_part(own, "unet", make_token_unet())
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(own / part)
    clap = make_clap(300)
    save_part(own, "text_encoder", clap)
    save_part(own, "tokenizer", train_tokenizer(CAPTIONS * 2, vocab_size=300))
    with pytest.raises(MusiccmError, match="unet attends to tokens .*text_encoder is a CLAP, which gives one vector"):
        Pipeline.from_pretrained(own)


def test_what_the_cache_is_made_from_follows_the_text_encoder(own: Path) -> None:
    before, hashed = fingerprint_of(own), Bundle.from_pretrained(own).content_hash()
    weights = own / "text_encoder/model.safetensors"
    state = load_file(weights)
    state["shared.weight"][5] += 1
    save_file(state, weights, metadata={"format": "pt"})
    after = fingerprint_of(own)
    assert after != before and Bundle.from_pretrained(own).content_hash() != hashed
    (own / "tokenizer/spiece.model").write_bytes(b"other pieces")
    assert fingerprint_of(own) != after
    save_part(own, "unet", make_token_unet())
    shutil.rmtree(own / "tokenizer")
    with pytest.raises(MusiccmError, match="tokenizer: no such part; latents need vae, text_encoder, tokenizer in"):
        fingerprint_of(own)


@pytest.mark.parametrize("unet, said", [
    (lambda: make_token_unet(width=WIDTH + 8), f"width {WIDTH + 8} .cross_attention_dim., text_encoder gives {WIDTH}"),
    (lambda: make_unet(4), "width 16, 32 .cross_attention_dim., text_encoder gives"),
])
def test_a_unet_of_another_model_is_refused(own: Path, unet, said: str) -> None:
    save_part(own, "unet", unet())
    with pytest.raises(MusiccmError, match=said):
        Pipeline.from_pretrained(own)
    with pytest.raises(MusiccmError, match=said):
        MusicCM(str(own), adversarial=Adversarial(weight=0.0))
    config = {key: value for key, value in unet().config.items() if not key.startswith("_")}
    with pytest.raises(MusiccmError, match=said):
        TeacherStage(config, bundle=str(own), audio_condition_share=0.0).setup("fit")


def test_a_unet_that_wants_a_vector_too_is_refused(own: Path) -> None:
    config = own / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "class_embed_type": "simple_projection"}))
    with pytest.raises(MusiccmError, match="class_embed_type.*expected a U-Net without class embedding"):
        Pipeline.from_pretrained(own)


def test_audio_conditions_and_audio_features_are_refused_at_the_start(shared: Path) -> None:
    with pytest.raises(MusiccmError, match="distillation.audio_condition_share: expected 0, found 0.5"):
        MusicCM(str(shared), Distillation(audio_condition_share=0.5), Adversarial(weight=0.0))
    with pytest.raises(MusiccmError, match="adversarial.features: 'clap' are those of an audio tower"):
        MusicCM(str(shared), adversarial=Adversarial(features="clap"))
    config = {key: value for key, value in make_token_unet().config.items() if not key.startswith("_")}
    with pytest.raises(MusiccmError, match="audio_condition_share: expected 0, found 0.5"):
        TeacherStage(config, bundle=str(shared)).setup("fit")
