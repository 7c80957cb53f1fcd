"""Tokenizers of every kind, made by the libraries that people's are made with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>", "<image>"]
CORPUS = [
    "what is this? is there a cat or a dog, yes or no: a red cat and a blue dog.",
    "USER: What's in the picture?\nASSISTANT: it isn't clear, 3.5 cm; <b> bold </b> {x} [y]",
    "was ist das für ein Bild? 写真には何が写っていますか。 猫です。 🐱 ça alors, été",
    "s> <s <| im_end |> image unk",
] * 3


def byte_level() -> Tokenizer:
    """GPT-2, Llama 3, Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    """SentencePiece BPE, as in Llama 2 and Gemma, with merges that make control tokens of their characters."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[*SPECIAL, *(f"<0x{b:02X}>" for b in range(256))])
    latin = [line for line in CORPUS if line.isascii()]
    tokenizer.train_from_iterator(latin, trainer)
    whole = json.loads(tokenizer.to_str())
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"] in SPECIAL]
    vocabulary = whole["model"]["vocab"]
    for a, b in (("<", "s"), ("<s", ">"), ("<", "/"), ("</", "s"), ("</s", ">")):
        vocabulary.setdefault(a + b, len(vocabulary))
        whole["model"]["merges"].insert(0, [a, b])
    whole["model"]["merges"].sort(key=lambda merge: len(merge[0] + merge[1]))
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram() -> Tokenizer:
    """SentencePiece Unigram, as in T5 and XGLM: control tokens are pieces of the model."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(vocab_size=180, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def word_piece() -> Tokenizer:
    """BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=260, special_tokens=SPECIAL))
    return tokenizer


def word_level() -> Tokenizer:
    """Words between spaces: a control token between spaces is one of them."""
    words = {word: None for line in CORPUS for word in line.split()}
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


KINDS = (byte_level, byte_fallback, unigram, word_piece, word_level)


def wrap(backend: Tokenizer, added: Iterable[str] = (), **settings: Any) -> PreTrainedTokenizerFast:
    """With "<s>" and "</s>", and `added` tokens that are not special."""
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **settings}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=["<|im_end|>", "<image>"], **settings
    )
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in added])
    return tokenizer


def save(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)
