"""stories15M: the format of llama2.c (model and tokenizer in one file) to a transformers folder."""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bitseam.errors import AssetError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer


class Header(NamedTuple):
    """The seven little-endian int32 that open the file."""

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    positions: int


def convert(source: Path, out: Path) -> None:
    """Write a `LlamaForCausalLM` (float32, tied embedding) and its tokenizer, without a chat template.

    Raises AssetError where the file is shorter or longer than its header says.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    data = (source / "package/dist/llama2.data").read_bytes()
    header, state, end = read_model(data)
    config = LlamaConfig(
        hidden_size=header.dim,
        intermediate_size=header.hidden,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        vocab_size=header.vocab,
        max_position_embeddings=header.positions,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    model.save_pretrained(out)
    PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(read_pieces(data, end, header.vocab)),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=header.positions,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(out)


def read_model(data: bytes) -> "tuple[Header, dict[str, torch.Tensor], int]":
    """Header, state dict of `LlamaForCausalLM`, and the offset of the tokenizer that follows.

    Order of the tensors: `memory_map_weights` of llama2.c's run.c. Queries and keys are stored in Meta's order of
    rotary pairs (2i, 2i+1) and go to transformers' order (i, i + head/2).
    """
    import torch

    if len(data) < 28:
        raise AssetError("llama2.data is cut off in its header")
    header = Header(*struct.unpack_from("<7i", data))
    dim, hidden, layers, heads, kv_heads, vocab, positions = header
    kv_dim = dim // heads * kv_heads
    at = 28

    def take(*shape: int) -> torch.Tensor:
        nonlocal at
        count = int(np.prod(shape))
        if at + 4 * count > len(data):
            raise AssetError(f"llama2.data is cut off: {len(data)} bytes end inside a tensor of shape {shape}")
        array = np.frombuffer(data, "<f4", count, at).reshape(shape)
        at += 4 * count
        return torch.tensor(array)

    def unpair(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
        return weight.view(n_heads, -1, 2, dim).transpose(1, 2).reshape(-1, dim).contiguous()

    state = {"model.embed_tokens.weight": take(vocab, dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv_dim, dim),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    for part, tensors in stacked.items():
        for layer, weight in enumerate(tensors):
            if part.endswith(("q_proj", "k_proj")):
                weight = unpair(weight, heads if part.endswith("q_proj") else kv_heads)
            state[f"model.layers.{layer}.{part}.weight"] = weight.clone()
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    take(2, positions, dim // heads // 2)  # tables of cosines and sines, which transformers computes itself
    return header, state, at


def read_pieces(data: bytes, at: int, vocab: int) -> list[tuple[str, float]]:
    """The vocabulary as (piece, score): int32 longest piece, then per token float32 score, int32 length, bytes.

    Three specials come first, then 256 bytes (named `<0x00>` to `<0xFF>` as in SentencePiece), then pieces in which
    the exporter turned `▁` into a space.
    """
    pieces: list[tuple[str, float]] = []
    try:
        at += 4
        for _ in range(vocab):
            score, length = struct.unpack_from("<fi", data, at)
            at += 8
            text = data[at : at + length]
            if len(text) != length:
                raise AssetError("llama2.data is cut off in its tokenizer")
            pieces.append((text.decode().replace(" ", "▁"), score))
            at += length
    except struct.error as error:
        raise AssetError("llama2.data is cut off in its tokenizer") from error
    if at != len(data):
        raise AssetError(f"llama2.data has {len(data) - at} bytes after its tokenizer")
    fixed = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    return [(name, 0.0) for name in fixed] + pieces[len(fixed) :]


def build_tokenizer(pieces: list[tuple[str, float]]) -> "Tokenizer":
    """A byte-fallback BPE that merges what SentencePiece and llama2.c merge: the adjacent pair of the best score.

    Every split of a piece into two pieces is a merge; ranking merges by the score of what they make is the same rule.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    ids = {piece: index for index, (piece, _) in enumerate(pieces)}
    merges = [
        (score, piece[:cut], piece[cut:])
        for piece, score in pieces[259:]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    merges.sort(key=lambda merge: -merge[0])  # stable: among splits of one piece the shorter left side goes first
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=[(left, right) for _, left, right in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer
