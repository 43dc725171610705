from __future__ import annotations

import json
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch import nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from capture.errors import OutliersError  # noqa: E402
from capture.sites.place import Site, SiteMap, find_sites, parse_overrides, sites_from_config  # noqa: E402
from capture.sites.trial import refuse_lookahead  # noqa: E402
from tests.architectures import ARCHITECTURES, EACH, HIDDEN, Expected  # noqa: E402

pytestmark = pytest.mark.capture


def tokens() -> torch.Tensor:
    return torch.arange(1, 19).reshape(2, 9)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sites_are_those_that_the_code_of_the_architecture_gives(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    found = find_sites(model)
    assert found.hidden_size == HIDDEN
    assert found.layers == model.config.get_text_config().num_hidden_layers
    for layer in range(found.layers):
        block = architecture.blocks.format(layer) + "."
        sites = {site.name: site for site in found.sites if site.layer == layer}
        as_expected = {
            site.name: Expected(
                site.module.removeprefix(block), site.kind, tuple(path.removeprefix(block) for path in site.feeds)
            )
            for site in sites.values()
        }
        assert as_expected == architecture.expected(layer)
        for site in sites.values():
            normed = site.kind != "none"
            assert site.weight_offset == (architecture.offset if normed else 0.0)
            assert site.rounding == (architecture.rounding if normed else "last")
            assert (site.epsilon is not None) == normed
    assert found.final.module == architecture.final
    kinds = {expected.kind for expected in architecture.expected(0).values()}
    assert found.final.kind == (architecture.final_kind or kinds.pop())


@pytest.mark.parametrize("name", EACH)
def test_placement_without_weights_is_that_with_weights(name: str) -> None:
    architecture = ARCHITECTURES[name]
    assert sites_from_config(architecture.config()) == find_sites(architecture.build())


@pytest.mark.parametrize("name", ["qwen3_moe", "qwen3_next", "gemma2", "olmo2", "falcon_40b", "opt_post_norm"])
def test_placement_under_fake_tensors_is_that_with_weights(name: str) -> None:
    architecture = ARCHITECTURES[name]
    real = find_sites(architecture.build())
    with FakeTensorMode():
        model = architecture.build()
        within = find_sites(model)
    assert within == real
    assert find_sites(model) == real


def test_placement_in_a_model_that_nnsight_wraps_is_that_without() -> None:
    nnsight = pytest.importorskip("nnsight")
    model = ARCHITECTURES["gemma2"].build()
    plain = find_sites(model)
    wrapped = nnsight.NNsight(model)
    with wrapped.trace(tokens()):
        wrapped.model.layers[0].input_layernorm.input.save()
    assert find_sites(model) == plain


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_placement_does_not_depend_on_the_dtype(dtype: str) -> None:
    architecture = ARCHITECTURES["qwen3_moe"]
    assert find_sites(architecture.build(getattr(torch, dtype))) == find_sites(architecture.build())


@pytest.mark.parametrize("name", EACH)
def test_the_first_site_of_a_block_reads_the_very_stream_that_enters_the_block(name: str) -> None:
    """A truth that the probe does not use: values, compared bit for bit."""
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    found = find_sites(model)
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str, argument: int | str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[path] = (kwargs[argument] if isinstance(argument, str) else args[argument]).clone()

        return hook

    firsts = [site for site in found.sites if site.name in ("ln_attn", "ln_attn_mlp", "ln_block")]
    for site in firsts:
        block = architecture.blocks.format(site.layer)
        model.get_submodule(site.module).register_forward_pre_hook(keep(site.module, site.argument), with_kwargs=True)
        model.get_submodule(block).register_forward_pre_hook(keep(block, 0), with_kwargs=True)
        if name == "minimax":  # a block begins with the norm whose output is the stream from there on
            model.get_submodule(f"{block}.input_layernorm").register_forward_hook(
                lambda _, args, output, block=block: seen.update({block: output.clone()})
            )
    with torch.no_grad():
        model(input_ids=tokens(), use_cache=False)
    for site in firsts:
        stream = seen[architecture.blocks.format(site.layer)]
        assert torch.equal(seen[site.module], stream.to(seen[site.module].dtype))


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma3_text", "olmo2", "olmo3", "exaone4", "falcon_40b", "gptj"])
def test_names_would_have_been_wrong(name: str) -> None:
    """`input_layernorm` and `post_attention_layernorm`, taken by name, are not what the sublayers read."""
    found = sites_from_config(ARCHITECTURES[name].config())
    by_name = [("ln_attn", "input_layernorm"), ("ln_mlp", "post_attention_layernorm")]
    first = [(site.name, site.module.rpartition(".")[2]) for site in found.sites if site.layer == 0]
    assert first != by_name


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_what_names_would_have_stored_is_another_tensor(name: str) -> None:
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    site = next(site for site in find_sites(model).sites if site.name == "ln_mlp")
    seen = {}
    block = model.get_submodule(architecture.blocks.format(0))
    for path, module in (("right", model.get_submodule(site.module)), ("named", block.post_attention_layernorm)):
        module.register_forward_pre_hook(lambda _, args, path=path: seen.__setitem__(path, args[0]))
    with torch.no_grad():
        model(input_ids=tokens(), use_cache=False)
    assert not torch.allclose(seen["right"], seen["named"], rtol=0.1, atol=0.1)


SMALL: dict[str, Any] = {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        ("mamba", {"vocab_size": 160, "hidden_size": 32, "num_hidden_layers": 2}, "state-space"),
        ("t5", {"vocab_size": 160, "d_model": 32, "num_layers": 1}, "encoder-decoder"),
        ("bart", {"vocab_size": 160, "d_model": 32}, "encoder-decoder"),
        ("bert", {**SMALL, "intermediate_size": 64}, "encoder"),
        ("roberta", {**SMALL, "intermediate_size": 64}, "encoder"),
        ("modernbert", {}, "decoder"),
        ("vit", {}, "decoder"),
    ],
)
def test_other_kinds_of_model_are_refused_with_one_line(model_type: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(OutliersError, match=reason) as caught:
        sites_from_config(transformers.AutoConfig.for_model(model_type, **settings))
    assert "\n" not in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [("T5ForConditionalGeneration", "encoder-decoder"), ("BertModel", "encoder"), ("MambaModel", "state")],
)
def test_other_kinds_of_model_with_weights_are_refused(cls: str, reason: str) -> None:
    config = {
        "T5ForConditionalGeneration": lambda: transformers.T5Config(vocab_size=160, d_model=32, num_layers=1, d_ff=32),
        "BertModel": lambda: transformers.BertConfig(**SMALL, intermediate_size=64),
        "MambaModel": lambda: transformers.MambaConfig(vocab_size=160, hidden_size=32, num_hidden_layers=2),
    }[cls]()
    with pytest.raises(OutliersError, match=reason):
        find_sites(getattr(transformers, cls)(config))


_STREAMS: dict[str, Any] = {
    **SMALL,
    "moe_intermediate_size": 32,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "head_dim": 16,
}
_LOW_RANK: dict[str, Any] = {
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "index_topk": 4,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("deepseek_v4", {**_LOW_RANK, "num_key_value_heads": 1}),
        (
            "hy_v4",
            {**_LOW_RANK, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "kv_lora_rank": 16}
            | {"qk_nope_head_dim": 16, "v_head_dim": 16},
        ),
        ("qwen4_exp_text", {"num_key_value_heads": 2, "num_experts": 4, "shared_expert_intermediate_size": 32}),
    ],
)
def test_several_residual_streams_are_refused_by_that_name(model_type: str, settings: dict[str, Any]) -> None:
    """Hyper-connections: no norm reads the stream, and no site would be what its name says."""
    config = transformers.AutoConfig.for_model(model_type, **{**_STREAMS, **settings})
    with pytest.raises(OutliersError, match=r"carries several residual streams .* of width 32\); expected one"):
        sites_from_config(config)


def test_linear_attention_alone_is_no_state_space_model() -> None:
    config = ARCHITECTURES["qwen3_next"].config()
    config.num_hidden_layers = 2
    config.layer_types = config.layer_types[:2]
    assert sites_from_config(config).names == ("ln_attn", "ln_mlp")


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.query(x) @ self.key(x).transpose(-1, -2)
        return scores.tril().softmax(-1) @ self.value(x)


class Wrapper(nn.Module):
    """Norm, sublayer and sum in one module, as in DBRX."""

    def __init__(self, width: int, sublayer: nn.Module) -> None:
        super().__init__()
        self.inner_norm = nn.LayerNorm(width)
        self.sublayer = sublayer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.sublayer(self.inner_norm(x))


class WrappedBlock(nn.Module):
    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.first = Wrapper(width, Attention(width))
        self.second = Wrapper(width, nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, width)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


class MixedBlock(nn.Module):
    """Every second block has one norm for both sublayers."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.attention = Attention(width)
        self.feed = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norms[0](x)
        if self.layer % 2:
            return x + self.attention(normed) + self.feed(normed)
        x = x + self.attention(normed)
        return x + self.feed(self.norms[1](x))


class ScaledBlock(nn.Module):
    """The sublayers receive neither a norm's output nor the stream."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.attention = Attention(width)
        self.feed = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(0.5 * self.norm(x))
        return x + self.feed(torch.tanh(x))


class FusedMixer(nn.Module):
    """A token mixer whose kernel takes the weights of its short convolution and shows nothing of what it does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 3, groups=width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(1) * self.convolution.weight[:, 0, 0]


class FusedBlock(nn.Module):
    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.first, self.second = (nn.RMSNorm(width) for _ in range(2))
        self.mixer, self.feed = FusedMixer(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mixer(self.first(x))
        return x + self.feed(self.second(x))


class InnerNormBlock(nn.Module):
    """A norm within a sublayer whose modules lie open in the block, and a gate that reads the bare stream."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.before_attention, self.inner, self.before_feed = (nn.RMSNorm(width) for _ in range(3))
        self.attention = Attention(width)
        self.output, self.gate, self.feed = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.output(self.inner(self.attention(self.before_attention(x))))
        return x + self.gate(x).sigmoid() * self.feed(self.before_feed(x))


class Toy(nn.Module):
    def __init__(self, block: Any, width: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, width)
        self.layers = nn.ModuleList(block(width, layer) for layer in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 100)

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def test_norms_inside_wrappers_are_found() -> None:
    found = find_sites(Toy(WrappedBlock))
    assert [(site.name, site.module) for site in found.sites if site.layer == 1] == [
        ("ln_attn", "layers.1.first.inner_norm"),
        ("ln_mlp", "layers.1.second.inner_norm"),
    ]
    assert found.final.module == "norm"


def test_norms_within_a_sublayer_and_gates_beside_it_are_no_sites() -> None:
    found = find_sites(Toy(InnerNormBlock))
    assert [(site.name, site.module, site.feeds) for site in found.sites if site.layer == 0] == [
        ("ln_attn", "layers.0.before_attention", ("layers.0.attention",)),
        ("ln_mlp", "layers.0.before_feed", ("layers.0.feed",)),
    ]


def test_a_mixer_is_known_by_its_convolution_where_a_kernel_hides_it() -> None:
    found = find_sites(Toy(FusedBlock))
    assert [(site.name, site.module) for site in found.sites[:2]] == [
        ("ln_attn", "layers.0.first"),
        ("ln_mlp", "layers.0.second"),
    ]


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_placement_does_not_depend_on_the_kind_of_attention(implementation: str) -> None:
    model = ARCHITECTURES["qwen3"].build()
    model.set_attn_implementation(implementation)
    assert find_sites(model) == sites_from_config(ARCHITECTURES["qwen3"].config())
    assert model.config._attn_implementation == implementation


def test_layers_with_other_sites_are_refused() -> None:
    with pytest.raises(
        OutliersError, match=r"layer 1 has sites \['ln_attn_mlp'\] and layer 0 has \['ln_attn', 'ln_mlp'\]"
    ):
        find_sites(Toy(MixedBlock))


def test_sublayers_that_read_something_else_are_refused() -> None:
    with pytest.raises(OutliersError, match=r"layers\.0 .*--sites"):
        find_sites(Toy(ScaledBlock))


def test_a_model_that_cannot_read_tokens_alone_is_refused() -> None:
    with pytest.raises(OutliersError, match="failed on a probe"):
        find_sites(nn.Linear(3, 3))


def test_overrides_place_what_cannot_be_seen() -> None:
    text = "ln_attn=layers.{}.norm,ln_mlp=layers.{}.feed,final=norm"
    found = find_sites(Toy(ScaledBlock), parse_overrides(text))
    assert [(site.layer, site.name, site.module, site.kind) for site in found.sites] == [
        (0, "ln_attn", "layers.0.norm", "rms"),
        (0, "ln_mlp", "layers.0.feed", "none"),
        (1, "ln_attn", "layers.1.norm", "rms"),
        (1, "ln_mlp", "layers.1.feed", "none"),
    ]
    assert found.kind == "mixed"
    with pytest.raises(OutliersError, match="no module layers"):
        find_sites(Toy(ScaledBlock), {"ln_attn": "layers.{}.nowhere"})


def test_an_override_of_the_final_norm_leaves_the_others() -> None:
    model = ARCHITECTURES["gemma2"].build()
    found = find_sites(model)
    assert find_sites(model, parse_overrides("final=model.norm")) == found
    assert find_sites(model, {"final": "lm_head"}).final.kind == "none"


@pytest.mark.parametrize(
    "text", ["", "ln_attn", "ln_attn=", "attention=a.{}", "ln_attn=a.b", "final=a.{}", "ln_mlp=a.{},ln_mlp=b.{}"]
)
def test_overrides_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(OutliersError, match="--sites"):
        parse_overrides(text)


def test_a_model_is_left_as_it_was() -> None:
    with torch.device("meta"):
        model = ARCHITECTURES["qwen3_moe"].build()
    model.model.layers[0].train()
    find_sites(model)
    assert {path for path, module in model.named_modules() if module.training} == {
        path for path, _ in model.named_modules() if path.startswith("model.layers.0")
    }
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_the_table_holds_every_site_as_json() -> None:
    found = sites_from_config(ARCHITECTURES["olmo2"].config())
    table = json.loads(json.dumps(found.table()))
    assert len(table) == len(found.sites) + 1
    assert table[-1]["name"] == "final"
    assert [Site(**{**row, "feeds": tuple(row["feeds"])}) for row in table[:-1]] == list(found.sites)


def test_names_keep_one_order_and_kinds_are_summed_up() -> None:
    site = Site(0, "ln_mlp", "b", "rms", ())
    other = Site(0, "ln_attn", "a", "none", ())
    found = SiteMap((site, other), site, 4)
    assert found.names == ("ln_attn", "ln_mlp")
    assert found.kind == "mixed"
    assert SiteMap((site,), site, 4).kind == "rms"


_BERT_SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def bert_like(model_type: str, **settings: Any) -> Any:
    return transformers.AutoConfig.for_model(model_type, **_BERT_SIZES, **settings)


@pytest.mark.parametrize("model_type", ["bert", "roformer", "megatron-bert", "roberta-prelayernorm"])
def test_an_encoder_is_refused_even_where_its_modules_do_not_say_so(model_type: str) -> None:
    with pytest.raises(OutliersError, match="is an encoder"):
        sites_from_config(bert_like(model_type))


def test_a_norm_in_a_wrapper_that_also_adds_to_the_stream_is_found() -> None:
    sites = sites_from_config(bert_like("roberta-prelayernorm", is_decoder=True))
    layer = "roberta_prelayernorm.encoder.layer.0"
    assert [(site.module, site.feeds) for site in sites.sites[:2]] == [
        (f"{layer}.attention.LayerNorm", (f"{layer}.attention.self",)),
        (f"{layer}.intermediate.LayerNorm", (f"{layer}.intermediate.dense",)),
    ]
    assert sites.final.module == "roberta_prelayernorm.LayerNorm"  # and not the one inside the head


def test_a_norm_inside_the_head_is_not_the_last_norm() -> None:
    special = {f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")}
    sites = sites_from_config(bert_like("modernbert-decoder", **special))
    assert sites.final.module == "model.final_norm"


class TwiceBlock(nn.Module):
    """One norm in front of both sublayers."""

    def __init__(self, width: int, layer: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.attention, self.feed = Attention(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.feed(self.norm(x))


def test_a_norm_that_runs_twice_in_a_block_is_refused() -> None:
    with pytest.raises(OutliersError, match=r"layers\.0\.norm, read at ln_attn, runs 2 times in a pass"):
        find_sites(Toy(TwiceBlock))


class Renumbered(Toy):
    """Some blocks do not run."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__(FusedBlock)
        self.layers = nn.ModuleList(FusedBlock(24, layer) for layer in range(4))
        self.order = order

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        x = self.embedding(input_ids)
        for number in self.order:
            x = self.layers[number](x)
        return self.head(self.norm(x))


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ((0, 2, 3), "blocks 1 of layers do not run"),
        ((1, 2), "blocks 0 of layers do not run"),
        ((1, 0, 2), "run out of order"),
    ],
)
def test_layers_never_get_another_number(order: tuple[int, ...], words: str) -> None:
    with pytest.raises(OutliersError, match=words):
        find_sites(Renumbered(order))


def test_blocks_behind_the_last_that_runs_change_no_number() -> None:
    assert [site.module for site in find_sites(Renumbered((0, 1, 2))).sites if site.layer == 2] == [
        "layers.2.first",
        "layers.2.second",
    ]


def test_cross_attention_blocks_that_do_not_run_on_text_are_refused() -> None:
    text = {
        **SMALL,
        "model_type": "mllama_text_model",
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "cross_attention_layers": [1],
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    config = transformers.AutoConfig.for_model("mllama", text_config=text)
    with pytest.raises(OutliersError, match=r"blocks 1 of model\.layers do not run"):
        sites_from_config(config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ln_mlp=model.layers.{}.mlp.down_proj", "receives 96 features; expected one that receives all 64"),
        ("final=model.layers.0.mlp.gate_proj", "was called after the last block"),
    ],
)
def test_an_override_that_reads_no_stream_is_refused(text: str, expected: str) -> None:
    with pytest.raises(OutliersError, match=expected):
        sites_from_config(ARCHITECTURES["llama"].config(), parse_overrides(text))


def test_a_model_that_looks_ahead_is_refused() -> None:
    model = ARCHITECTURES["llama"].build()
    refuse_lookahead(model)
    attention = model.model.layers[0].self_attn
    plain = attention.forward

    def ahead(hidden_states: torch.Tensor, **named: Any) -> Any:
        mixed, weights = plain(hidden_states=hidden_states, **named)
        return mixed + hidden_states.mean(dim=1, keepdim=True), weights

    attention.forward = ahead
    with pytest.raises(OutliersError, match="looks ahead"):
        refuse_lookahead(model)
