"""CoPE in small, randomly initialised models of Hugging Face ``transformers``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from cope import cope_attention
from cope.errors import UserError

pytest.importorskip("transformers", reason="transformers is not installed: pip install 'cope-lab[transformers]'")
import transformers

from cope.huggingface import add_cope, from_pretrained, measuring

SIZES = dict(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
ENDS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=None)
LLAMA = transformers.LlamaConfig(**SIZES, **ENDS, intermediate_size=48, num_key_value_heads=2)
NEOX = transformers.GPTNeoXConfig(**SIZES, **ENDS, intermediate_size=48)
GPT2 = transformers.GPT2Config(
    vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ENDS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    scale_attn_by_inverse_layer_idx=True,
)  # fmt: skip
CASES = [(LLAMA, True), (LLAMA, False), (NEOX, False), (GPT2, True)]
IDS = ["llama", "llama without rotation", "gpt-neox without rotation", "gpt-2"]
TOKENS = torch.randint(2, 50, (3, 12), generator=torch.Generator().manual_seed(0))


def plain(config: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()


def tables(model: Any) -> list[Tensor]:
    return [parameter for name, parameter in model.named_parameters() if name.endswith("cope_table")]


@pytest.fixture(params=CASES, ids=IDS, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    """With tables that matter."""
    config, keep_positions = request.param
    made = add_cope(plain(config), num_positions=6, keep_positions=keep_positions)
    torch.manual_seed(1)
    for table in tables(made):
        torch.nn.init.normal_(table)
    return made


@pytest.mark.parametrize("config", [LLAMA, NEOX, GPT2], ids=lambda config: config.model_type)
def test_a_table_of_zeros_changes_nothing(config):
    mask = torch.ones_like(TOKENS)
    mask[0, :4] = 0
    expected = plain(config)(TOKENS, attention_mask=mask).logits
    found = add_cope(plain(config), num_positions=6)(TOKENS, attention_mask=mask).logits
    torch.testing.assert_close(found[mask == 1], expected[mask == 1], rtol=1e-4, atol=1e-5)


def test_a_layer_is_cope_attention_between_its_projections():
    model = add_cope(plain(LLAMA), num_positions=6, keep_positions=False)
    layer = model.model.layers[1].self_attn
    torch.nn.init.normal_(layer.cope_table)
    inputs: list[Tensor] = []
    layer.register_forward_pre_hook(lambda _, __, given: inputs.append(given["hidden_states"]), with_kwargs=True)
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
    model(TOKENS)
    q, k, v = (
        projection(inputs[0]).unflatten(-1, (-1, 8)).transpose(1, 2)
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    assert (q.shape[1], k.shape[1]) == (4, 2)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    attended = cope_attention(q, k, v, layer.cope_table, backend="reference")
    torch.testing.assert_close(outputs[0], layer.o_proj(attended.transpose(1, 2).flatten(-2)), rtol=1e-4, atol=1e-5)


def test_rotation_is_off_where_it_was_turned_off():
    """By CoPE alone a model cannot tell how far apart equal tokens stand, if all gates are open and the table is one vector."""
    model = add_cope(plain(LLAMA), num_positions=1, keep_positions=False)
    permuted = TOKENS[:, torch.tensor([3, 1, 0, 2, *range(4, 12)])]
    # One layer of attention without positions sees a set: the last token's output does not depend on the order before it.
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    torch.testing.assert_close(model(permuted).logits[:, -1], model(TOKENS).logits[:, -1], rtol=1e-4, atol=1e-5)
    kept = add_cope(plain(LLAMA), num_positions=1)
    assert not torch.allclose(kept(permuted).logits[:, -1], kept(TOKENS).logits[:, -1], atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(model, side):
    """Tokens of a padded sequence get the logits that they get alone."""
    mask = torch.ones_like(TOKENS)
    mask[1, :5] = 0
    if side == "right":
        mask = mask.flip(1)
    found = model(TOKENS, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    alone = model(TOKENS[1:2, mask[1] == 1]).logits
    torch.testing.assert_close(found[1, mask[1] == 1], alone[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[0], model(TOKENS[:1]).logits[0], rtol=1e-4, atol=1e-4)


def test_a_step_of_training_moves_every_table(model):
    model = copy.deepcopy(model).train()
    for table in tables(model):
        torch.nn.init.zeros_(table)
    before = [table.detach().clone() for table in tables(model)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        loss = model(TOKENS, attention_mask=torch.ones_like(TOKENS), labels=TOKENS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all((table != old).any(-1)[:3].all() for table, old in zip(tables(model), before, strict=True))
    with torch.no_grad():
        assert model(TOKENS, attention_mask=torch.ones_like(TOKENS), labels=TOKENS).loss < loss


@pytest.mark.parametrize("cache", [True, "static"])
def test_generation_with_a_cache_is_that_without(model, cache):
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0  # prompts of unequal length are padded on the left
    given = dict(attention_mask=mask, max_new_tokens=8, do_sample=False)
    without = model.generate(TOKENS, use_cache=False, **given)
    how = {"use_cache": True} if cache is True else {"cache_implementation": "static"}
    assert torch.equal(model.generate(TOKENS, **how, **given), without)
    alone = model.generate(TOKENS[:1, 5:], use_cache=True, max_new_tokens=8, do_sample=False)
    assert torch.equal(alone[0, 7:], without[0, 12:])


def test_saving_and_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(str(tmp_path)).eval()
    assert type(loaded).__name__ == type(model).__name__
    assert loaded.config.contextual_positions == model.config.contextual_positions
    assert all(torch.equal(found, own) for found, own in zip(tables(loaded), tables(model), strict=True))
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_what_cannot_be_done_is_refused(tmp_path):
    model = add_cope(plain(LLAMA), num_positions=3)
    with pytest.raises(UserError, match="has CoPE already"):
        add_cope(model, num_positions=3)
    with pytest.raises(UserError, match="num_positions=0 is too small"):
        add_cope(plain(LLAMA), num_positions=0)
    with pytest.raises(UserError, match="GPT2LMHeadModel has no rotary positions to turn off; allowed: keep_positions=True"):
        add_cope(plain(GPT2), num_positions=3, keep_positions=False)
    with pytest.raises(UserError, match=r"attention_mask has shape \(3, 1, 12, 12\); allowed: \(batch, time\)"):
        model(TOKENS, attention_mask=torch.zeros(3, 1, 12, 12))
    with pytest.raises(UserError, match="another mask than the causal one"):
        model(TOKENS, position_ids=torch.arange(6).repeat(2)[None], use_cache=False)  # two sequences packed into one
    sliding = transformers.MistralConfig(**SIZES, **ENDS, intermediate_size=48, num_key_value_heads=2, sliding_window=4)
    with pytest.raises(UserError, match="another mask than the causal one"):
        add_cope(plain(sliding), num_positions=3)(TOKENS)
    unprepared = plain(LLAMA)
    unprepared.set_attn_implementation("cope")
    with pytest.raises(UserError, match="has no table of positions: call cope"):
        unprepared(TOKENS)
    unprepared.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="was saved without CoPE"):
        from_pretrained(str(tmp_path))


def test_how_much_positions_matter_is_measured(model):
    with torch.no_grad(), measuring(model) as uses:
        expected = model(TOKENS[:2]).logits
        model(TOKENS[2:])
    assert len(uses) == 2 and all(use.share.shape == (4,) and (use.share > 0).all() for use in uses)
    assert uses[0].reads.sum() == pytest.approx(3 * 4 * 12 * 13 / 2)  # heads and pairs of every sequence
    assert torch.equal(model(TOKENS[:2]).logits, expected) and len(uses) == 2


def test_what_attends_otherwise_is_refused_though_it_asks_for_no_mask():
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, max_target_positions=32,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = add_cope(transformers.WhisperForConditionalGeneration(config), num_positions=3)
    with pytest.raises(UserError, match="WhisperAttention attends in both directions, or to another sequence; allowed"):
        model(input_features=torch.zeros(3, 8, 40), decoder_input_ids=TOKENS)
    packed = dict(position_ids=torch.arange(6).repeat(2)[None], cu_seq_lens_q=torch.tensor([0, 6, 12]))
    with pytest.raises(UserError, match="cu_seq_lens_q: this model's attention does what CoPE's does not"):
        add_cope(plain(LLAMA), num_positions=3)(TOKENS[:1], **packed)


def test_a_mask_that_leaves_out_what_is_cached_is_refused():
    model = add_cope(plain(LLAMA), num_positions=3)
    cache = model(TOKENS[:, :9]).past_key_values
    with pytest.raises(UserError, match="attention_mask has 3 tokens, of 12 that are attended to; allowed: all of them"):
        model(TOKENS[:, 9:], past_key_values=cache, attention_mask=torch.tensor([[0, 1, 1]] * 3))


def test_a_saved_model_is_loaded_with_its_tables_or_not_at_all(model, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    other = add_cope(plain(LLAMA), num_positions=3, scale="paper")
    other.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path / "inner")
    loaded, found = from_pretrained(
        str(tmp_path), subfolder="inner", output_loading_info=True
    )  # with its config, not the outer
    assert torch.equal(loaded.eval()(TOKENS).logits, model(TOKENS).logits) and not found["missing_keys"]
    assert torch.equal(from_pretrained(str(tmp_path), config=other.config).eval()(TOKENS).logits, other(TOKENS).logits)
    with pytest.raises(
        UserError, match=r"LlamaForCausalLM was saved with CoPE .* load it with cope.huggingface.from_pretrained"
    ):
        add_cope(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), num_positions=3)
    path = tmp_path / "model.safetensors"
    weights = {name: weight for name, weight in safetensors.load_file(path).items() if "cope_table" not in name}
    safetensors.save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks model.layers.0.self_attn.cope_table: its config names CoPE"):
        from_pretrained(str(tmp_path))
