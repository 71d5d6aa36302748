"""Checks the keys of a LLaMA's config.json that are not numbers of the model: refused, harmless, or unknown."""

import logging
from collections.abc import Mapping
from typing import Any

from fot_jax.config import UserError

logger = logging.getLogger(__name__)

PLAIN_WEIGHTS = "absent: dequantise the checkpoint first, or take its GGUF file"
ONE_SOFTMAX = "absent or 1 (a LLaMA scales scores by 1/sqrt(head_dim) alone)"
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {  # key: the values it may have if it is there, and their description
    "attention_bias": ((False, None), "false (projections without bias)"),
    "qkv_bias": ((False, None), "false (projections without bias)"),
    "mlp_bias": ((False, None), "false (projections without bias)"),
    "bias": ((False, None), "false (projections without bias)"),
    "hidden_act": (("silu", "swish", None), "'silu'"),
    "sliding_window": ((None,), "null (every layer sees its whole context)"),
    "use_sliding_window": ((False, None), "false (every layer sees its whole context)"),
    "attention_chunk_size": ((None,), "null (every layer sees its whole context)"),
    "quantization_config": ((None,), PLAIN_WEIGHTS),
    "compression_config": ((None,), PLAIN_WEIGHTS),
    "num_local_experts": ((None, 0), "absent (no mixture of experts)"),
    "num_experts": ((None, 0), "absent (no mixture of experts)"),
    "no_rope_layers": ((None, []), "absent (all layers rotate)"),
    "no_rope_layer_interval": ((None, 0), "absent (all layers rotate)"),
    "rope_interleaved": ((False, None), "false (dimension i rotates with i + head_dim/2)"),
    "rope_interleave": ((False, None), "false (dimension i rotates with i + head_dim/2)"),
    "qk_layernorm": ((False, None), "false (queries and keys without norms)"),
    "use_qk_norm": ((False, None), "false (queries and keys without norms)"),
    "qk_norm": ((False, None), "false (queries and keys without norms)"),
    "attention_multiplier": ((None,), ONE_SOFTMAX),
    "query_pre_attn_scalar": ((None,), ONE_SOFTMAX),
    "attn_temperature_tuning": ((False, None), ONE_SOFTMAX),
    "attn_logit_softcapping": ((None, 0), "null"),
    "final_logit_softcapping": ((None, 0), "null"),
    "logit_scale": ((None, 1), "absent or 1"),
    "logits_scaling": ((None, 1), "absent or 1"),
    "embedding_multiplier": ((None, 1), "absent or 1"),
    "residual_multiplier": ((None, 1), "absent or 1"),
    "scale_emb": ((None, 1), "absent or 1"),
    "scale_depth": ((None, 1), "absent or 1"),
    "per_layer_config": ((None, {}), "absent (all layers have one shape)"),
    "pruned_heads": ((None, {}), "absent (no heads pruned)"),
    "is_causal": ((True, None), "true"),
    "is_encoder_decoder": ((False, None), "false"),
    "add_cross_attention": ((False, None), "false"),
    "use_parallel_residual": ((False, None), "false"),
    "transformers_weights": ((None,), "absent: name the file model.safetensors"),
}
READ = {
    "architectures", "model_type", "layer_types", "hidden_size", "num_attention_heads", "num_key_value_heads",
    "num_hidden_layers", "head_dim", "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
    "original_max_position_embeddings", "mem_layers", "mem_positionals", "last_context_length", "fot_jax",
    "bos_token_id", "eos_token_id", "pad_token_id",
}  # fmt: skip
HARMLESS = {
    # training and initialisation: the tensors are their result
    "initializer_range", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "rope_finetuned",
    # the same numbers, computed or stored in another way; here parameters are stored in --dtype
    "pretraining_tp", "torch_dtype", "dtype", "use_cache", "cache_implementation", "attn_implementation",
    "_attn_implementation", "_flash_attn_2_enabled", "gradient_checkpointing", "chunk_size_feed_forward",
    "use_bfloat16", "mem_dtype", "mem_attention_grouping", "gradient_checkpoint_every_ith", "torch_attention",
    "tie_encoder_decoder",
    # the outputs of a forward pass, and names
    "return_dict", "output_attentions", "output_hidden_states", "torchscript", "transformers_version",
    "transformers.js_config", "_name_or_path", "name_or_path", "_commit_hash", "unsloth_version", "unsloth_fixed",
    "tokenizer_class", "prefix", "task_specific_params", "is_decoder", "id2label", "label2id", "num_labels",
    "problem_type", "finetuning_task", "max_sequence_length", "model_max_length", "cross_attention_hidden_size",
    # generation, which the vocabulary and the command line decide here
    "sep_token_id", "decoder_start_token_id", "unk_token_id", "do_sample", "temperature", "top_k", "top_p", "typical_p",
    "max_length", "min_length", "num_beams", "num_beam_groups", "num_return_sequences", "repetition_penalty",
    "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "early_stopping", "bad_words_ids",
    "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty",
    "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff",
    "suppress_tokens", "begin_suppress_tokens", "diversity_penalty", "output_scores", "return_dict_in_generate",
}  # fmt: skip


def check_keys(values: Mapping[str, Any], *, source: str) -> None:
    """Refuses settings that the decoder lacks, by their key, and logs unknown keys.

    Args:
      values: config.json; a null counts as absent.
      source: the file; errors begin with it.

    Raises:
      UserError: a key whose value would change the model's numbers.
    """
    for key, (allowed, words) in REFUSED.items():
        value = values.get(key)
        if value not in allowed:
            raise UserError(f"{source}: {key} must be {words}, got {value!r}. This is not supported.")
    layers = values.get("layer_types") or ()
    kinds = {str(kind) for kind in layers} - {"full_attention"} if isinstance(layers, list | tuple) else {str(layers)}
    if kinds:
        raise UserError(f"{source}: layer_types must all be 'full_attention', got {sorted(kinds)}.")
    if "auto_map" in values and values.get("model_type") != "longllama":
        logger.warning("%s: auto_map names code of the model's own, which is not run: it is read as a LLaMA", source)
    stated = {key for key, value in values.items() if value is not None}
    unknown = sorted(stated - READ - HARMLESS - set(REFUSED) - {"auto_map"})
    if unknown:
        logger.warning("%s: not read, as nothing here knows what it says: %s", source, ", ".join(unknown)[:400])
