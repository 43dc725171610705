"""Tiny random models of real transformers configuration classes, with the sites that reading their code gives.

Every expectation here was written by hand from the modeling code, so that it is independent of what the probe sees.
`ARCHITECTURES` parametrises what must be seen to hold for every architecture at each change, `EACH` what may wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

HIDDEN = 64
VOCABULARY = 160


@dataclass(frozen=True)
class Expected:
    """A site: path of its module within the block, kind of norm, and paths of what it feeds."""

    module: str
    kind: str
    feeds: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """One architecture at a size that runs in milliseconds.

    Parameters
    ----------
    config : makes the configuration
    blocks : path of a block, {} for its number
    sites : expected site of each name, or one such mapping a layer where layers differ
    final : path of the last norm
    offset, rounding : what the norms add to their weight, and where they round
    final_kind : kind of the last norm, where it is not that of the sites
    """

    config: Callable[[], transformers.PreTrainedConfig]
    blocks: str
    sites: dict[str, Expected] | tuple[dict[str, Expected], ...]
    final: str
    offset: float = 0.0
    rounding: str = "last"
    final_kind: str | None = None

    def build(self, dtype: torch.dtype = torch.float32) -> Any:
        """Build the model with random weights, those of the norms included."""
        torch.manual_seed(0)
        config = self.config()
        cls: Any = transformers.AutoModelForCausalLM
        if type(config) not in cls._model_mapping:
            cls = transformers.AutoModelForImageTextToText
        model = cls.from_config(config, dtype=dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model

    def expected(self, layer: int) -> dict[str, Expected]:
        """Return the expected sites of a layer."""
        return self.sites if isinstance(self.sites, dict) else self.sites[layer]


def _config(model_type: str, **settings: Any) -> Callable[[], transformers.PreTrainedConfig]:
    return lambda: transformers.AutoConfig.for_model(model_type, **settings)


def _llama_like(model_type: str, **settings: Any) -> Callable[[], transformers.PreTrainedConfig]:
    # Not every configuration takes a width of the heads; head_dim=None leaves it out.
    merged = {**_LLAMA, **settings}
    return _config(
        model_type, **{key: value for key, value in merged.items() if key != "head_dim" or value is not None}
    )


_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MLA: dict[str, Any] = {
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "head_dim": 8,
    "num_key_value_heads": 4,
}


def _two(attention_norm: str, attention: str, mlp_norm: str, mlp: str, kind: str) -> dict[str, Expected]:
    return {
        "ln_attn": Expected(attention_norm, kind, (attention,)),
        "ln_mlp": Expected(mlp_norm, kind, (mlp,)),
    }


_PRE_NORM = _two("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", "rms")
_PRE_LAYER_NORM = _two("input_layernorm", "self_attn", "post_attention_layernorm", "mlp", "layer")
_GEMMA = _two("input_layernorm", "self_attn", "pre_feedforward_layernorm", "mlp", "rms")
_POST_NORM = _two("self_attn", "self_attn", "mlp", "mlp", "none")
_GPT2 = _two("ln_1", "attn", "ln_2", "mlp", "layer")
_LINEAR_ATTENTION = _two("input_layernorm", "linear_attn", "post_attention_layernorm", "mlp", "rms")


def _parallel(norm: str, attention: str, mlp: str) -> dict[str, Expected]:
    return {"ln_attn_mlp": Expected(norm, "layer", (attention, mlp))}


def _llama(model_type: str, rounding: str = "normalized", **settings: Any) -> Architecture:
    """Architecture whose blocks look like Llama's."""
    return Architecture(_llama_like(model_type, **settings), "model.layers.{}", _PRE_NORM, "model.norm", 0.0, rounding)


_BERT = _two("attention.self", "attention.self", "intermediate", "intermediate", "none")
_NEOX = {key: value for key, value in _LLAMA.items() if key not in ("num_key_value_heads", "head_dim")}
_GPT2_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 128,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}
_FALCON: dict[str, Any] = {**_NEOX, "alibi": False, "bias": False}
_FALCON_NAMES = ("self_attention", "mlp")
_OPT: dict[str, Any] = {**_NEOX, "ffn_dim": 96, "word_embed_proj_dim": HIDDEN}
_TEXT_LAYERS = "model.language_model.layers.{}"
_TEXT_NORM = "model.language_model.norm"
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def _bert(model_type: str, name: str, final: str, **settings: Any) -> Architecture:
    """A decoder of BERT's family."""
    config = _config(model_type, **{**_NEOX, "pad_token_id": 0, "is_decoder": True, **settings})
    return Architecture(config, name + ".encoder.layer.{}", _BERT, final, final_kind="none")


def _wrapped(model_type: str, text: Callable[[], Any], vision: str, **settings: Any) -> Callable[[], Any]:
    def config() -> transformers.PreTrainedConfig:
        pixels = transformers.AutoConfig.for_model(vision, **_VISION)
        return transformers.AutoConfig.for_model(
            model_type, text_config=text(), vision_config=pixels, image_token_id=VOCABULARY - 1, **settings
        )

    return config


ARCHITECTURES: dict[str, Architecture] = {
    "qwen3": _llama("qwen3"),
    "qwen3_moe": _llama("qwen3_moe", **_EXPERTS),
    "qwen3_next": Architecture(
        _llama_like(
            "qwen3_next",
            **_EXPERTS,
            num_hidden_layers=4,
            shared_expert_intermediate_size=32,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
        ),
        "model.layers.{}",
        (_LINEAR_ATTENTION, _LINEAR_ATTENTION, _LINEAR_ATTENTION, _PRE_NORM),
        "model.norm",
        offset=1.0,
    ),
    "gpt_oss": _llama("gpt_oss", "last", num_local_experts=4, num_experts_per_tok=2),
    "glm4_moe": _llama(
        "glm4_moe",
        num_hidden_layers=3,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
    ),
    "olmoe": _llama("olmoe", num_experts=4, num_experts_per_tok=2),
    "mixtral": _llama("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "gpt2": Architecture(_config("gpt2", **_GPT2_SIZES), "transformer.h.{}", _GPT2, "transformer.ln_f"),
    "opt": Architecture(
        _config("opt", **_OPT),
        "model.decoder.layers.{}",
        _two("self_attn_layer_norm", "self_attn", "final_layer_norm", "fc1", "layer"),
        "model.decoder.final_layer_norm",
    ),
    # OPT-350m: norms after the sublayers, whose outputs are the stream; no last norm, a map to a narrower embedding.
    "opt_post_norm": Architecture(
        _config("opt", **{**_OPT, "word_embed_proj_dim": 32}, do_layer_norm_before=False),
        "model.decoder.layers.{}",
        {
            "ln_attn": Expected("self_attn", "none", ("self_attn",)),
            "ln_mlp": Expected("fc1", "none", ("fc1",)),
        },
        "model.decoder.project_out",
        final_kind="none",
    ),
    "gptj": Architecture(
        _config("gptj", **_GPT2_SIZES, rotary_dim=8),
        "transformer.h.{}",
        _parallel("ln_1", "attn", "mlp"),
        "transformer.ln_f",
    ),
    "llama": _llama("llama"),
    "mistral": _llama("mistral"),
    "phi": Architecture(
        _llama_like("phi", head_dim=None),
        "model.layers.{}",
        _parallel("input_layernorm", "self_attn", "mlp"),
        "model.final_layernorm",
    ),
    "phi3": _llama("phi3", head_dim=None),
    "gemma": Architecture(_llama_like("gemma"), "model.layers.{}", _PRE_NORM, "model.norm", offset=1.0),
    "gemma2": Architecture(_llama_like("gemma2"), "model.layers.{}", _GEMMA, "model.norm", offset=1.0),
    "gemma3_text": Architecture(_llama_like("gemma3_text"), "model.layers.{}", _GEMMA, "model.norm", offset=1.0),
    "olmo": Architecture(_llama_like("olmo", head_dim=None), "model.layers.{}", _PRE_LAYER_NORM, "model.norm"),
    "olmo2": Architecture(_llama_like("olmo2"), "model.layers.{}", _POST_NORM, "model.norm", final_kind="rms"),
    "olmo3": Architecture(_llama_like("olmo3"), "model.layers.{}", _POST_NORM, "model.norm", final_kind="rms"),
    "gpt_neox_parallel": Architecture(
        _config("gpt_neox", **_NEOX, use_parallel_residual=True),
        "gpt_neox.layers.{}",
        _two("input_layernorm", "attention", "post_attention_layernorm", "mlp", "layer"),
        "gpt_neox.final_layer_norm",
    ),
    "gpt_neox_sequential": Architecture(
        _config("gpt_neox", **_NEOX, use_parallel_residual=False),
        "gpt_neox.layers.{}",
        _two("input_layernorm", "attention", "post_attention_layernorm", "mlp", "layer"),
        "gpt_neox.final_layer_norm",
    ),
    "stablelm": Architecture(_llama_like("stablelm", head_dim=None), "model.layers.{}", _PRE_LAYER_NORM, "model.norm"),
    "stablelm_parallel": Architecture(
        _llama_like("stablelm", head_dim=None, use_parallel_residual=True),
        "model.layers.{}",
        _parallel("input_layernorm", "self_attn", "mlp"),
        "model.norm",
    ),
    "cohere": Architecture(
        _llama_like("cohere", head_dim=None),
        "model.layers.{}",
        _parallel("input_layernorm", "self_attn", "mlp"),
        "model.norm",
    ),
    "cohere2": Architecture(
        _llama_like("cohere2"), "model.layers.{}", _parallel("input_layernorm", "self_attn", "mlp"), "model.norm"
    ),
    "starcoder2": Architecture(
        _llama_like("starcoder2", head_dim=None), "model.layers.{}", _PRE_LAYER_NORM, "model.norm"
    ),
    # Falcon-7B: one norm for both.
    "falcon_7b": Architecture(
        _config("falcon", **_FALCON, multi_query=True, parallel_attn=True, new_decoder_architecture=False),
        "transformer.h.{}",
        _parallel("input_layernorm", *_FALCON_NAMES),
        "transformer.ln_f",
    ),
    # Falcon-40B: a norm for each, still in parallel.
    "falcon_40b": Architecture(
        _config("falcon", **_FALCON, num_kv_heads=2, new_decoder_architecture=True),
        "transformer.h.{}",
        _two("ln_attn", "self_attention", "ln_mlp", "mlp", "layer"),
        "transformer.ln_f",
    ),
    # Falcon2-11B: the new block with one norm.
    "falcon_11b": Architecture(
        _config("falcon", **_FALCON, num_kv_heads=2, new_decoder_architecture=True, num_ln_in_parallel_attn=1),
        "transformer.h.{}",
        _parallel("input_layernorm", *_FALCON_NAMES),
        "transformer.ln_f",
    ),
    # Falcon-RW: one after the other, with ALiBi.
    "falcon_rw": Architecture(
        _config(
            "falcon",
            **{**_FALCON, "alibi": True, "bias": True},
            multi_query=False,
            parallel_attn=False,
            new_decoder_architecture=False,
        ),
        "transformer.h.{}",
        _two("input_layernorm", "self_attention", "post_attention_layernorm", "mlp", "layer"),
        "transformer.ln_f",
    ),
    "bloom": Architecture(
        _config("bloom", vocab_size=VOCABULARY, hidden_size=HIDDEN, n_layer=2, n_head=4),
        "transformer.h.{}",
        _two("input_layernorm", "self_attention", "post_attention_layernorm", "mlp", "layer"),
        "transformer.ln_f",
    ),
    # MPT's LayerNorm has no bias.
    "mpt": Architecture(
        _config("mpt", vocab_size=VOCABULARY, d_model=HIDDEN, n_layers=2, n_heads=4, max_seq_len=128),
        "transformer.blocks.{}",
        _two("norm_1", "attn", "norm_2", "ffn", "layer"),
        "transformer.norm_f",
    ),
    "gpt_neo": Architecture(
        _config(
            "gpt_neo",
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            num_layers=2,
            num_heads=4,
            max_position_embeddings=128,
            attention_types=[[["global", "local"], 1]],
            window_size=8,
        ),
        "transformer.h.{}",
        _GPT2,
        "transformer.ln_f",
    ),
    "gpt_bigcode": Architecture(_config("gpt_bigcode", **_GPT2_SIZES), "transformer.h.{}", _GPT2, "transformer.ln_f"),
    "codegen": Architecture(
        _config("codegen", **_GPT2_SIZES, rotary_dim=8),
        "transformer.h.{}",
        _parallel("ln_1", "attn", "mlp"),
        "transformer.ln_f",
    ),
    "deepseek_v3": _llama(
        "deepseek_v3",
        **_MLA,
        n_routed_experts=8,
        n_shared_experts=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
    ),
    "granite": _llama("granite", head_dim=None),
    "glm4": _llama("glm4"),
    "smollm3": _llama("smollm3", head_dim=None),
    "nemotron": Architecture(
        _llama_like("nemotron"), "model.layers.{}", _PRE_LAYER_NORM, "model.norm", offset=1.0, rounding="weight"
    ),
    "exaone4": Architecture(_llama_like("exaone4"), "model.layers.{}", _POST_NORM, "model.norm", final_kind="rms"),
    "qwen2_moe": _llama("qwen2_moe", head_dim=None, **_EXPERTS, shared_expert_intermediate_size=32),
    "llama4_text": Architecture(
        _llama_like("llama4_text", intermediate_size_mlp=96, num_local_experts=4, interleave_moe_layer_step=2),
        "model.layers.{}",
        _two("input_layernorm", "self_attn", "post_attention_layernorm", "feed_forward", "rms"),
        "model.norm",
        rounding="normalized",
    ),
    "jamba": Architecture(
        _llama_like(
            "jamba",
            head_dim=None,
            num_hidden_layers=2,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=4,
            mamba_d_state=4,
            use_mamba_kernels=False,
        ),
        "model.layers.{}",
        tuple(
            _two("input_layernorm", mixer, "pre_ff_layernorm", "feed_forward", "rms")
            for mixer in ("mamba", "self_attn")
        ),
        "model.final_layernorm",
        rounding="normalized",
    ),
    # Norms and attention in a wrapper of their own; all experts of a layer in one matrix.
    "dbrx": Architecture(
        _config(
            "dbrx",
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            n_heads=4,
            n_layers=2,
            max_seq_len=128,
            attn_config={"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10000.0},
            ffn_config={"ffn_hidden_size": 96, "hidden_size": HIDDEN, "moe_num_experts": 4, "moe_top_k": 2},
        ),
        "transformer.blocks.{}",
        _two("norm_attn_norm.norm_1", "norm_attn_norm.attn", "norm_attn_norm.norm_2", "ffn", "layer"),
        "transformer.norm_f",
    ),
    "biogpt": Architecture(
        _config("biogpt", **_NEOX),
        "biogpt.layers.{}",
        _two("self_attn_layer_norm", "self_attn", "final_layer_norm", "fc1", "layer"),
        "biogpt.layer_norm",
    ),
    "llava": Architecture(
        _wrapped("llava", _llama_like("llama"), "clip_vision_model"),
        _TEXT_LAYERS,
        _PRE_NORM,
        _TEXT_NORM,
        0.0,
        "normalized",
    ),
    "gemma3": Architecture(
        _wrapped("gemma3", _llama_like("gemma3_text"), "siglip_vision_model", mm_tokens_per_image=4),
        _TEXT_LAYERS,
        _GEMMA,
        _TEXT_NORM,
        offset=1.0,
    ),
    # The residual stream is the norm's own output, scaled: the norms come after the sublayers, as in OPT-350m.
    "minimax": Architecture(
        _llama_like(
            "minimax",
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=["linear_attention", "full_attention"],
            block_size=16,
            linear_attn_alpha_factor=3.5,
            full_attn_alpha_factor=3.5,
            mlp_alpha_factor=3.5,
        ),
        "model.layers.{}",
        _POST_NORM,
        "model.norm",
        rounding="normalized",
        final_kind="rms",
    ),
    # Two mixers beside each other, of which the attention reads a multiple of the norm's output.
    "falcon_h1": Architecture(
        _llama_like(
            "falcon_h1",
            mamba_d_ssm=64,
            mamba_n_heads=4,
            mamba_d_head=16,
            mamba_d_state=8,
            mamba_n_groups=1,
            mamba_chunk_size=8,
            attention_in_multiplier=0.5,
        ),
        "model.layers.{}",
        {
            "ln_attn": Expected("input_layernorm", "rms", ("mamba", "self_attn")),
            "ln_mlp": Expected("pre_ff_layernorm", "rms", ("feed_forward",)),
        },
        "model.final_layernorm",
        rounding="normalized",
    ),
    # A residual stream in float32 that is cast before each norm.
    "zaya": Architecture(
        _llama_like("zaya", num_experts=4, num_experts_per_tok=1, moe_intermediate_size=32),
        "model.layers.{}",
        _PRE_NORM,
        "model.norm",
        rounding="normalized",
    ),
    # Each block is a single sublayer.
    "nemotron_h": Architecture(
        _llama_like(
            "nemotron_h",
            num_hidden_layers=4,
            layers_block_type=["linear_attention", "moe", "full_attention", "mlp"],
            mamba_num_heads=4,
            mamba_head_dim=16,
            ssm_state_size=8,
            n_groups=1,
            chunk_size=8,
            n_routed_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            moe_shared_expert_intermediate_size=32,
        ),
        "model.layers.{}",
        {"ln_block": Expected("norm", "rms", ("mixer",))},
        "model.norm_f",
    ),
    # The last norm runs before the first block too.
    "nanochat": Architecture(_llama_like("nanochat"), "model.layers.{}", _PRE_NORM, "model.norm"),
    "gpt_neox_japanese": Architecture(
        _config("gpt_neox_japanese", **_NEOX, intermediate_multiple_size=2),
        "gpt_neox_japanese.layers.{}",
        _two("input_layernorm", "attention", "post_attention_layernorm", "mlp", "layer"),
        "gpt_neox_japanese.final_layer_norm",
    ),
    # BERT and its kin as decoders: norms behind the sublayers, inside the modules that add.
    "bert": _bert("bert", "bert", "cls"),
    "roberta": _bert("roberta", "roberta", "lm_head"),
    "electra": _bert("electra", "electra", "generator_predictions", embedding_size=HIDDEN),
    "roformer": _bert("roformer", "roformer", "cls", embedding_size=HIDDEN),
    "xmod": _bert("xmod", "roberta", "lm_head", languages=["en_XX"], default_language="en_XX"),
    "git": Architecture(
        lambda: transformers.AutoConfig.for_model("git", **_NEOX, vision_config=_VISION),
        "git.encoder.layer.{}",
        _BERT,
        "output",
        final_kind="none",
    ),
    # Norms before the sublayers, the first inside the attention's wrapper.
    "megatron_bert": Architecture(
        _config("megatron-bert", **_NEOX, is_decoder=True),
        "bert.encoder.layer.{}",
        _two("attention.ln", "attention.self", "ln", "intermediate", "layer"),
        "bert.encoder.ln",
    ),
    "mistral3": Architecture(
        _wrapped("mistral3", _llama_like("mistral"), "pixtral"), _TEXT_LAYERS, _PRE_NORM, _TEXT_NORM, 0.0, "normalized"
    ),
    # Positions made where the token ids are: without weights, too, they are on the device of the weights.
    "xglm": Architecture(
        _config(
            "xglm",
            vocab_size=VOCABULARY,
            d_model=HIDDEN,
            ffn_dim=96,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=128,
        ),
        "model.layers.{}",
        _two("self_attn_layer_norm", "self_attn", "final_layer_norm", "fc1", "layer"),
        "model.layer_norm",
    ),
    "fuyu": Architecture(
        _config(
            "fuyu",
            text_config={"model_type": "persimmon", **_NEOX},
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            patch_size=14,
            pad_token_id=None,
            image_token_id=VOCABULARY - 1,
        ),
        _TEXT_LAYERS,
        _PRE_LAYER_NORM,
        "model.language_model.final_layernorm",
    ),
    "smolvlm": Architecture(
        _wrapped("smolvlm", _llama_like("llama", pad_token_id=0), "smolvlm_vision"),
        "model.text_model.layers.{}",
        _PRE_NORM,
        "model.text_model.norm",
        rounding="normalized",
    ),
    # Convolutions beside attention, and a shared expert beside the others.
    "lfm2": Architecture(
        _llama_like("lfm2", head_dim=None, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        "model.layers.{}",
        tuple(_two("operator_norm", mixer, "ffn_norm", "feed_forward", "rms") for mixer in ("conv", "self_attn")),
        "model.embedding_norm",
        rounding="normalized",
    ),
    "granitemoeshared": Architecture(
        _llama_like(
            "granitemoeshared",
            head_dim=None,
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=32,
        ),
        "model.layers.{}",
        {
            "ln_attn": _PRE_NORM["ln_attn"],
            "ln_mlp": Expected("post_attention_layernorm", "rms", ("block_sparse_moe", "shared_mlp")),
        },
        "model.norm",
        rounding="normalized",
    ),
}

_TYPICAL = frozenset(
    (
        *("qwen3_moe", "qwen3_next", "gpt_oss", "gpt2", "opt_post_norm", "llama", "gemma2", "olmo2", "falcon_40b"),
        *("cohere", "nemotron_h", "falcon_h1", "jamba", "bert"),
    )
)
EACH = [pytest.param(name, marks=() if name in _TYPICAL else pytest.mark.exhaustive) for name in ARCHITECTURES]
"""Every architecture, one of each kind of block, norm and mixer at once and the others where there is time."""
