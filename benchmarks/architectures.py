"""Language models of transformers, made tiny: the class of each one's configuration, and what differs from `TINY`.

Windows and chunks are shorter than the rows they are tried with; what a model has of its own, such as soft caps, scales
and states, is set so that it matters.
"""

from __future__ import annotations

from typing import Any

WINDOW = 6
VOCABULARY = 64
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
_BERT = {"is_decoder": True}
_MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_DEEPSEEK = {
    **_MLA,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
_SLIDING = {"sliding_window": WINDOW}
_MIXED = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
_MAMBA2 = {"n_groups": 1, "num_heads": 8, "head_dim": 8, "state_size": 8, "expand": 2, "chunk_size": 8}
_LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 2.0, 3.0, 4.0],
    },
    "original_max_position_embeddings": 12,
}

# name -> (class, changes)
LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama, dynamic": (
        "LlamaConfig",
        {
            "max_position_embeddings": 12,
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
        },
    ),
    "mistral, window": ("MistralConfig", _SLIDING),
    "mixtral": ("MixtralConfig", _MOE),
    "mixtral, router loss": ("MixtralConfig", {**_MOE, "output_router_logits": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, window": ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 1, **_SLIDING}),
    "qwen2 moe": ("Qwen2MoeConfig", {**_MOE, "shared_expert_intermediate_size": 24}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3 moe": ("Qwen3MoeConfig", _MOE),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            **_MOE,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "gemma": ("GemmaConfig", {}),
    "gemma 2": ("Gemma2Config", {**_MIXED, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    "gemma 3": ("Gemma3TextConfig", _MIXED),
    "gemma 3n": (
        "Gemma3nTextConfig",
        {
            **_MIXED,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "num_kv_shared_layers": 0,
            "intermediate_size": [48, 48],
            "activation_sparsity_pattern": [0.0, 0.0],
        },
    ),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
    "phi-3": ("Phi3Config", {}),
    "phi-3, window": ("Phi3Config", _SLIDING),
    "phi-3, longrope": ("Phi3Config", _LONGROPE),
    "phimoe": ("PhimoeConfig", _MOE),
    "gpt-2": ("GPT2Config", _GPT2),
    "gpt-bigcode": ("GPTBigCodeConfig", _GPT2),
    "gpt-neo, local": (
        "GPTNeoConfig",
        {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    ),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "gpt-j": ("GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    "codegen": ("CodeGenConfig", {**_GPT2, "rotary_dim": 4}),
    "openai gpt": ("OpenAIGPTConfig", _GPT2),
    "ctrl": ("CTRLConfig", {**_GPT2, "dff": 48}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt, projected": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon": ("FalconConfig", {"head_dim": None, "num_kv_heads": 2, "new_decoder_architecture": True}),
    "falcon, alibi": ("FalconConfig", {"head_dim": None, "alibi": True, "new_decoder_architecture": False}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2}),
    "stablelm": ("StableLmConfig", {}),
    "starcoder2, window": ("Starcoder2Config", _SLIDING),
    "persimmon": ("PersimmonConfig", {}),
    "nemotron": ("NemotronConfig", {}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
    "cohere 2": ("Cohere2Config", {**_MIXED, "logit_scale": 0.25}),
    "granite": (
        "GraniteConfig",
        {"logits_scaling": 8.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3},
    ),
    "granite moe": ("GraniteMoeConfig", {**_MOE, "logits_scaling": 8.0}),
    "olmo": ("OlmoConfig", {"clip_qkv": 1.0}),
    "olmo 2": ("Olmo2Config", {}),
    "olmo 3": ("Olmo3Config", _MIXED),
    "olmoe": ("OlmoeConfig", _MOE),
    "glm": ("GlmConfig", {}),
    "glm 4": ("Glm4Config", {}),
    "glm 4 moe": ("Glm4MoeConfig", {**_DEEPSEEK, "head_dim": 8, "partial_rotary_factor": 0.5}),
    "deepseek v2": ("DeepseekV2Config", {**_DEEPSEEK, "topk_method": "group_limited_greedy"}),
    "deepseek v3": ("DeepseekV3Config", _DEEPSEEK),
    "llama 4": (
        "Llama4TextConfig",
        {
            **_MOE,
            "attention_chunk_size": WINDOW,
            "intermediate_size_mlp": 48,
            "interleave_moe_layer_step": 2,
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "floor_scale": 4,
            "attn_scale": 0.5,
        },
    ),
    "gpt-oss": ("GptOssConfig", {**_MOE, **_MIXED}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "ernie 4.5": ("Ernie4_5Config", {}),
    "helium": ("HeliumConfig", {}),
    "exaone 4, window": ("Exaone4Config", _MIXED),
    "diffllama": ("DiffLlamaConfig", {}),
    "modernbert decoder": ("ModernBertDecoderConfig", {**_MIXED, "local_attention": WINDOW}),
    "xglm": ("XGLMConfig", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48}),
    "biogpt": ("BioGptConfig", {}),
    "bert": ("BertConfig", _BERT),
    "bert, not a decoder": ("BertConfig", {}),
    "bert generation": ("BertGenerationConfig", _BERT),
    "roberta": ("RobertaConfig", {**_BERT, "pad_token_id": 1}),
    "electra": ("ElectraConfig", {**_BERT, "embedding_size": 32}),
    "bart": (
        "BartConfig",
        {
            "d_model": 32,
            "decoder_layers": 2,
            "encoder_layers": 2,
            "decoder_attention_heads": 4,
            "encoder_attention_heads": 4,
            "decoder_ffn_dim": 48,
            "encoder_ffn_dim": 48,
        },
    ),
    "xlnet": (
        "XLNetConfig",
        {"max_position_embeddings": None, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    ),
    "mamba": ("MambaConfig", {"state_size": 8, "time_step_rank": 4}),
    "falcon mamba": ("FalconMambaConfig", {"state_size": 8, "time_step_rank": 4}),
    "mamba 2": ("Mamba2Config", _MAMBA2),
    "rwkv": ("RwkvConfig", {"attention_hidden_size": 32, "rescale_every": 6}),
    "recurrentgemma": (
        "RecurrentGemmaConfig",
        {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "jamba": (
        "JambaConfig",
        {
            **_MOE,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "zamba 2": (
        "Zamba2Config",
        {
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "hybrid_layer_ids": [1],
            "num_mem_blocks": 1,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "mamba_headdim": 8,
            "chunk_size": 8,
            "num_key_value_heads": 4,
            "use_mem_rope": False,
            "adapter_rank": 4,
        },
    ),
    "bamba": (
        "BambaConfig",
        {
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
        },
    ),
    "falcon h1": (
        "FalconH1Config",
        {
            "mamba_d_ssm": 64,
            "mamba_n_heads": 8,
            "mamba_d_head": 8,
            "mamba_n_groups": 1,
            "mamba_d_state": 8,
            "mamba_chunk_size": 8,
            "lm_head_multiplier": 0.3,
        },
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "block_multiple_of": 16}),
    "minimax": ("MiniMaxConfig", {**_MOE, "block_size": 8, "layer_types": ["linear_attention", "full_attention"]}),
}
