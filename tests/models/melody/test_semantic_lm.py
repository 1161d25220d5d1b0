"""The language model: closed forms of its loss, a Markov chain that it learns, draws that depend on nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from musiccm.errors import MusiccmError
from musiccm.models.melody.semantic_lm import SemanticLM, SemanticLMConfig, draw, noisy
from musiccm.models.melody.tokenizer import SemanticTokenizer

SMALL = {"codebook": 16, "tokens": 12, "prefix_codes": 3, "prefix_codebook": 8, "joint_width": 6, "width": 32,
         "layers": 2, "heads": 4, "feed_forward": 48}


def make(**changed: Any) -> SemanticLM:
    torch.manual_seed(1)
    model = SemanticLM({**SMALL, **changed})
    model.rvq.codebooks_QKD.normal_()
    # far from uniform, so that draws differ
    torch.nn.init.normal_(model.network.lm_head.weight, std=0.5)
    return model.eval()


def tokenizer(codebook: int = 16) -> SemanticTokenizer:
    config = {"source": "tagger", "source_fingerprint": "x", "features": 4, "codebook": codebook, "width": 4}
    return SemanticTokenizer(config)


def test_the_full_size_is_that_of_the_paper_within_a_thousandth() -> None:
    """24 blocks of 4 x 1024^2 + 3 x 1024 x 4096, two embeddings of 13 x 1024 ids, 49 norms: MeLoDy states 429.5 M."""
    with torch.device("meta"):
        model = SemanticLM(SemanticLMConfig())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == 24 * (4 * 1024**2 + 3 * 1024 * 4096) + 2 * 13 * 1024 * 1024 + 49 * 1024 == 429_966_336
    assert abs(count / 429.5e6 - 1) < 0.0011
    assert model.rvq.codebooks_QKD.shape == (12, 1024, 512)
    assert model.network.lm_head.weight.shape == (13 * 1024, 1024) and model.offset == 12 * 1024


@pytest.mark.slow
def test_the_full_size_takes_a_step() -> None:
    model = SemanticLM(SemanticLMConfig())
    before = model.network.lm_head.weight.detach()[-1024:].clone()
    model.loss(torch.randint(1024, (1, 12)), torch.randint(1024, (1, 250))).mean().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert not torch.equal(model.network.lm_head.weight.detach()[-1024:], before)


def test_the_loss_of_a_model_that_knows_nothing_is_the_logarithm_of_the_codebook() -> None:
    model = make()
    torch.nn.init.zeros_(model.network.lm_head.weight)
    loss_BL = model.loss(torch.zeros(3, 3, dtype=torch.long), torch.randint(16, (3, 12)))
    torch.testing.assert_close(loss_BL, torch.full((3, 12), math.log(16)))


def test_a_tokens_loss_depends_on_what_is_before_it_alone_and_on_the_prefix() -> None:
    model = make()
    prefix, ids = torch.randint(8, (1, 3)), torch.randint(16, (1, 12))
    before = model.loss(prefix, ids)
    later = ids.clone()
    later[0, 7] = (ids[0, 7] + 1) % 16
    changed = model.loss(prefix, later)
    torch.testing.assert_close(changed[0, :7], before[0, :7])
    assert (changed[0, 8:] - before[0, 8:]).abs().min() > 1e-6
    other = model.loss((prefix + 1) % 8, ids)
    assert (other[0, 0] - before[0, 0]).abs() > 1e-4, "the first token follows the prefix"
    # the same code of another level is another word
    assert not torch.allclose(model.loss(prefix.flip(1), ids), before) or torch.equal(prefix.flip(1), prefix)


def test_it_learns_a_markov_chain_to_its_entropy() -> None:
    """A chain of 8 states with two followers each, .75 and .25; which two, the first prefix code says."""
    torch.manual_seed(0)
    followers = torch.stack([torch.randperm(8), torch.randperm(8)])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))

    def chains(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        kind = torch.randint(2, (count,), generator=generator)
        ids = torch.randint(8, (count, 1), generator=generator)
        for _ in range(11):
            step = torch.where(torch.rand(count, generator=generator) < 0.75, 1, 5)
            ids = torch.cat([ids, ((followers[kind, ids[:, -1]] + step) % 8)[:, None]], 1)
        return torch.nn.functional.pad(kind[:, None], (0, 2)), ids

    model = make(codebook=8, layers=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    for step in range(120):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, step / 10, (120 - step) / 60)
        optimizer.zero_grad()
        model.loss(*chains(64, generator)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        loss_BL = model.eval().loss(*chains(1000, generator))
    # the first state is any of 8, the others follow
    assert loss_BL[:, 0].mean().item() == pytest.approx(math.log(8), abs=0.06)
    assert loss_BL[:, 1:].mean().item() == pytest.approx(entropy, abs=0.06) and entropy < 0.6 < math.log(8)
    # what it writes are steps of the chain, in their shares
    prefix = torch.zeros(64, 3, dtype=torch.long)
    ids = model.generate(prefix, 12, range(64))
    step = (ids[:, 1:] - followers[0][ids[:, :-1]]) % 8
    assert ((step == 1) | (step == 5)).float().mean() > 0.97
    assert (step == 1).float().mean().item() == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, None), (0.7, 5), (0.0, None)])
def test_generation_with_the_cache_is_that_without(temperature: float, top_k: int | None) -> None:
    """Beyond the length that the model was trained on too, where the oldest tokens are forgotten."""
    model, prefix = make(), torch.randint(8, (3, 3))
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k}
    kept = model.generate(prefix, 30, [5, 6, 7], **how)
    assert kept.shape == (3, 30) and torch.equal(model.generate(prefix, 30, [5, 6, 7], cache=False, **how), kept)
    if temperature:
        assert not torch.equal(kept[0], kept[1])


def test_the_likeliest_of_one_is_the_argmax_of_the_loss_side() -> None:
    model, prefix = make(), torch.randint(8, (2, 3))
    ids = model.generate(prefix, 12, [1, 2], top_k=1)
    with torch.no_grad():
        assert torch.equal(model(prefix, ids).argmax(2), ids)
    assert torch.equal(model.generate(prefix, 12, [8, 9], temperature=0.0), ids)


def test_an_item_depends_on_its_own_seed_and_prefix_alone() -> None:
    model, prefix = make(), torch.randint(8, (4, 3))
    together = model.generate(prefix, 20, [3, 1, 4, 1], temperature=0.9, top_k=8)
    for n, seed in enumerate([3, 1, 4, 1]):
        alone = model.generate(prefix[n : n + 1], 20, [seed], temperature=0.9, top_k=8)
        assert torch.equal(alone[0], together[n])
    assert not torch.equal(model.generate(prefix[:1], 20, [2]), model.generate(prefix[:1], 20, [3]))


def test_continuation_reads_the_prefix_and_the_last_tokens_again() -> None:
    model, prefix = make(), torch.randint(8, (2, 3))
    # within the trained length, going on is what writing on would have been
    whole = model.generate(prefix, 12, [1, 1], temperature=0.0)
    rest = model.generate(prefix, 7, [1, 1], temperature=0.0, start_BL=whole[:, :5])
    assert torch.equal(rest, whole[:, 5:])
    # beyond it, the oldest quarter is forgotten: 3 of 12
    longer = model.generate(prefix, 15, [1, 1], temperature=0.0)
    assert torch.equal(longer[:, :12], whole)
    assert torch.equal(model.generate(prefix, 3, [1, 1], temperature=0.0, start_BL=whole[:, 3:]), longer[:, 12:])
    assert torch.equal(model.generate(prefix, 3, [1, 1], temperature=0.0, start_BL=whole), longer[:, 12:])
    # tokens from far before change nothing
    far = torch.cat([torch.randint(16, (2, 40)), whole], 1)
    assert torch.equal(model.generate(prefix, 3, [1, 1], temperature=0.0, start_BL=far), longer[:, 12:])
    streamed = model.stream(prefix, [1, 1], temperature=0.0)
    assert torch.equal(torch.stack([next(streamed) for _ in range(15)], 1), longer)


def test_draws_follow_the_distribution_and_top_k_cuts_it() -> None:
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4])
    logits = weights.log().expand(4000, 4)
    generators = [torch.Generator().manual_seed(n) for n in range(4000)]
    shares = torch.bincount(draw(logits, generators, 1.0, None), minlength=4) / 4000
    torch.testing.assert_close(shares, weights, atol=0.03, rtol=0)
    shares = torch.bincount(draw(logits, generators, 1.0, 2), minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.0, 0.0, 3 / 7, 4 / 7]), atol=0.03, rtol=0)
    # at half the temperature, probabilities squared: 1, 4, 9, 16 of 30
    shares = torch.bincount(draw(logits, generators, 0.5, None), minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([1, 4, 9, 16]) / 30, atol=0.03, rtol=0)


def test_noise_on_the_embedding_has_the_stated_length_and_leaves_a_unit_vector() -> None:
    unit = torch.nn.functional.normalize(torch.randn(2000, 128), dim=1)
    found = noisy(3 * unit, 0.5, torch.Generator().manual_seed(9))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2000))
    # nearly at a right angle to the embedding: cos = 1 / sqrt(1 + .5^2)
    assert (found * unit).sum(1).mean().item() == pytest.approx(1 / math.sqrt(1.25), abs=0.01)
    torch.testing.assert_close(noisy(3 * unit, 0.0, torch.Generator()), unit)


def test_a_model_is_held_to_its_tokenizer_and_read_back_as_it_was(tmp_path: Any) -> None:
    own, other = tokenizer(), tokenizer()
    other.centroids_KD += 1
    model = make(tokenizer=own.fingerprint)
    model.save_pretrained(tmp_path / "lm")
    read = SemanticLM.from_pretrained(tmp_path / "lm", own)
    prefix = torch.randint(8, (1, 3))
    assert torch.equal(read.generate(prefix, 10, [1]), model.generate(prefix, 10, [1]))
    assert torch.equal(read.prefix(torch.ones(1, 6)), model.prefix(torch.ones(1, 6) * 9)), "taken at unit length"
    with pytest.raises(MusiccmError, match="trained on a codebook of 16 tokens, and the tokenizer has 32"):
        SemanticLM.from_pretrained(tmp_path / "lm", tokenizer(32))
    with pytest.raises(MusiccmError, match="tokens of another tokenizer"):
        SemanticLM.from_pretrained(tmp_path / "lm", other)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"seeds": [1]}, "2 items need as many seeds, found 1"),
        ({"temperature": -1.0}, "temperature: expected a finite number from 0, found -1.0"),
        ({"temperature": math.nan}, "temperature: expected a finite number"),
        ({"top_k": 17}, "top_k: expected 1 to 16, the codebook, found 17"),
        ({"hop": 12}, "hop: expected 1 to 11 tokens, found 12"),
        ({"length": 0}, "at least one token to write, found 0"),
        ({"start_BL": torch.full((2, 3), 16)}, "expected ids from 0 to 15, found 16 to 16; they are of another"),
        ({"start_BL": torch.zeros(1, 3, dtype=torch.long)}, r"2 prefixes, but tokens to continue of shape \(1, 3\)"),
        ({"prefix_BQ": torch.zeros(2, 4, dtype=torch.long)}, "expected 3 prefix codes an item"),
    ],
)
def test_bad_settings_are_refused(how: dict[str, Any], message: str) -> None:
    given = {"prefix_BQ": torch.zeros(2, 3, dtype=torch.long), "length": 3, "seeds": [1, 2], **how}
    with pytest.raises(MusiccmError, match=message):
        make().generate(**given)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(MusiccmError, match="width 30 is no multiple of two times 4 heads"):
        SemanticLM({**SMALL, "width": 30})
    with pytest.raises(MusiccmError, match="expected at least 1, found layers 0"):
        SemanticLM({**SMALL, "layers": 0})
    with pytest.raises(MusiccmError, match="expected ids from 0 to 15, found 0 to 16"):
        make().loss(torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 16]]))
