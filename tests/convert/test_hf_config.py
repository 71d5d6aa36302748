"""config.json of LLaMA, its like and LongLLaMA, in every spelling; what is not supported is refused by its key."""

import logging

import pytest

from fot_jax.config import LastContext, MemoryPositions, Retrieval, RopeConfig, RopeScaling, UserError
from fot_jax.convert.hf_config import Changes, read_config
from fot_jax.convert.importing import import_checkpoint
from fot_jax.logging import warn_once
from tests.convert.checkpoints import SMALL, random_tensors, write_folder

LONG_LLAMA_3B = {
    "architectures": ["LongLlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "gradient_checkpoint_every_ith": 1, "hidden_act": "silu", "hidden_size": 3200, "initializer_range": 0.02,
    "intermediate_size": 8640, "last_context_length": 1024, "max_position_embeddings": 2048,
    "mem_attention_grouping": None, "mem_dtype": "bfloat16", "mem_layers": [6, 12, 18], "mem_positionals": True,
    "model_type": "longllama", "num_attention_heads": 32, "num_hidden_layers": 26, "pad_token_id": 0,
    "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "torch_attention": False, "torch_dtype": "float32",
    "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": False, "vocab_size": 128256,
}  # fmt: skip


def read(values, **changes):
    return read_config(values, source="config.json", changes=Changes(**changes))


def test_long_llama():
    model, memory = read(LONG_LLAMA_3B)
    assert (model.num_layers, model.embed_dim, model.num_heads, model.num_kv_heads) == (26, 3200, 32, 32)
    assert (model.head_dim, model.mlp_dim, model.vocab_size, model.local_context) == (100, 8640, 32000, 2048)
    assert model.memory_layers == (6, 12, 18) and model.memory_positions is MemoryPositions.ROPE0
    assert model.rope == RopeConfig(theta=10000.0) and not model.tie_embeddings
    assert (memory.retrieval, memory.last_context_length) == (Retrieval.DENSE, 1024)
    assert memory.last_context is LastContext.EXACT, "their last window holds as many tokens, no more"
    model, memory = read({**LONG_LLAMA_3B, "mem_positionals": False}, memory_layers=(3,), local_context=512)
    assert model.memory_positions is MemoryPositions.NOPE and model.memory_layers == (3,)
    assert (model.local_context, memory.last_context_length) == (512, 512), "at most the local context"


def test_a_last_context_beyond_the_window_is_said(caplog):
    """The checkpoint's own, or one that a shorter window makes too long; nothing is said where both fit."""
    caplog.set_level(logging.WARNING, logger="fot_jax")
    assert read(LONG_LLAMA_3B, local_context=1024)[1].last_context_length == 1024 and not caplog.records
    for values, changes, window in (
        ({**LONG_LLAMA_3B, "last_context_length": 4096}, {}, 2048),
        (LONG_LLAMA_3B, {"local_context": 512}, 512),
    ):
        caplog.clear()
        assert read(values, **changes)[1].last_context_length == window
        assert caplog.text.count(f"is more than the local context: {window} is taken") == 1


def test_exported_settings_with_former_names_are_read(caplog):
    """Reads a folder that was exported before a field of the memory was renamed, and logs it once."""
    warn_once.cache_clear()
    values = {**SMALL, "fot_jax": {"memory": {"logn_from": 4096}}}
    assert [read(values)[1].log_length_scaling_from for _ in range(2)] == [4096, 4096]
    assert caplog.text.count("memory.logn_from: this field of the saved config is") == 1


def test_keys_that_nothing_knows_are_logged_once(caplog):
    """Every key of a config.json that transformers writes for a LLaMA is known, and those of LongLLaMA."""
    import transformers

    caplog.set_level(logging.WARNING, logger="fot_jax")
    generation = transformers.GenerationConfig._get_default_generation_params()
    for values in (transformers.LlamaConfig().to_dict() | {"architectures": None}, LONG_LLAMA_3B, LLAMA_31_8B):
        read({**dict.fromkeys(generation, 1), **values})
    assert not caplog.records
    read({**SMALL, "yyy": 1, "auto_map": {"AutoModelForCausalLM": "modeling.Model"}, "zzz": 2, "null": None})
    assert "not read, as nothing here knows what it says: yyy, zzz" in caplog.text
    assert "auto_map names code of the model's own, which is not run" in caplog.text and len(caplog.records) == 2


def test_a_long_llama_checkpoint_is_imported(tmp_path):
    values = {**SMALL, "architectures": ["LongLlamaForCausalLM"], "model_type": "longllama", "mem_layers": [1],
              "mem_positionals": True, "mem_dtype": "bfloat16", "last_context_length": 16}  # fmt: skip
    config = import_checkpoint(write_folder(tmp_path / "hf", values, random_tensors(SMALL)), tmp_path / "run")
    assert config.model.memory_layers == (1,) and config.memory.last_context_length == 16


def test_llama_31():
    model, memory = read(LLAMA_31_8B, local_context=4096, memory_layers=(8, 16))
    assert (model.num_kv_heads, model.head_dim, model.local_context) == (8, 128, 4096)
    assert model.rope == RopeConfig(
        theta=5e5, scaling=RopeScaling.LLAMA3, factor=8.0, original_context=8192, low_freq_factor=1.0
    )
    assert model.memory_layers == (8, 16) and memory.retrieval is Retrieval.EXACT
    assert read(LLAMA_31_8B)[0].local_context == 131072


def test_llama_1_has_fewer_keys():
    old = {key: value for key, value in SMALL.items() if key not in ("num_key_value_heads", "rope_theta")}
    model, _ = read({**old, "rope_scaling": None, "head_dim": None})
    assert model.num_kv_heads == 4 and model.rope == RopeConfig(theta=10000.0)
    model, _ = read({key: value for key, value in old.items() if key != "architectures"})
    assert model.num_layers == 2, "the architecture is also in model_type"


@pytest.mark.parametrize("key", ["type", "rope_type"])
@pytest.mark.parametrize("place", ["rope_scaling", "rope_parameters"])
def test_every_spelling_of_a_scaling(key, place):
    def rope(**scaling):
        theta = {"rope_theta": 7.0} if place == "rope_parameters" else {}
        top = {} if theta else {"rope_theta": 7.0}
        values = {k: v for k, v in SMALL.items() if k != "rope_theta"}
        return read({**values, **top, place: {key: scaling.pop("kind"), **scaling, **theta}})[0].rope

    scaled = {"theta": 7.0, "factor": 4.0}
    assert rope(kind="default") == RopeConfig(theta=7.0)
    linear = rope(kind="linear", factor=4)
    assert (linear.scaling, linear.theta, linear.factor) == (RopeScaling.LINEAR, 7.0, 4.0)
    dynamic = rope(kind="dynamic", factor=4.0, original_max_position_embeddings=16)
    assert dynamic == RopeConfig(scaling=RopeScaling.DYNAMIC, original_context=64, **scaled), "as transformers"
    yarn = rope(kind="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=16)
    assert yarn == RopeConfig(scaling=RopeScaling.YARN, original_context=16, beta_fast=16.0, **scaled)
    assert rope(kind="yarn", factor=4.0).original_context == 64
    llama3 = rope(kind="llama3", factor=4.0, low_freq_factor=1, high_freq_factor=2)
    assert llama3 == RopeConfig(scaling=RopeScaling.LLAMA3, original_context=64, high_freq_factor=2.0, **scaled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architectures must be 'LlamaForCausalLM' or .* 'MistralFor"),
        ({"architectures": None, "model_type": "gpt2"}, "architectures must be .* got 'gpt2'"),
        ({"model_type": "mistral"}, "model_type must be 'llama', as architectures says 'LlamaFor.* got 'mistral'"),
        ({"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config must be absent"),
        ({"rope_interleaved": True}, "rope_interleaved must be false"),
        ({"attention_multiplier": 0.1}, "attention_multiplier must be absent or 1"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier must be absent or 1, got 12.0"),
        ({"no_rope_layers": [1, 1, 0]}, "no_rope_layers must be absent"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights must be absent"),
        ({"layer_types": "sliding_attention"}, "layer_types must all be 'full_attention'"),
        ({"attention_bias": True}, "attention_bias must be false .* got True"),
        ({"mlp_bias": True}, "mlp_bias must be false"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', got 'gelu'"),
        ({"sliding_window": 4096}, "sliding_window must be null"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"layer_types must all .* \['sliding_attention'\]"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config must be absent: .*gptq"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, r"rope_scaling\.type must be one of .* got 'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor must be a finite number, got None"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, r"rope_scaling\.factor must be >= 1, got 0\.5"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 2.0}}, "attention_factor must be"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.5, "mscale_all_dim": 1.0}}, "mscale included"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}}, "truncate must be true"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor must be 1 .* got 0\.5"),
        ({"hidden_size": "16"}, "hidden_size must be int, got '16'"),
        ({"hidden_size": None}, "hidden_size must be int, got None"),
        ({"hidden_size": 18}, "hidden_size must be a multiple of num_attention_heads=4, got 18"),
        ({"num_key_value_heads": 3}, r"model\.num_heads must be a multiple of num_kv_heads=3"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a finite number, got nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be bool"),
        ({"fot_jax": {"memory": {"topk": 3}}}, r"memory\.topk is unknown .* Did you mean 'top_k'"),
        ({"fot_jax": []}, "fot_jax must be dict"),
    ],
)
def test_what_is_unsupported_is_refused_by_name(change, message):
    with pytest.raises(UserError, match=message) as caught:
        read({**SMALL, **change})
    assert "\n" not in str(caught.value) and str(caught.value).startswith("config.json: ")
