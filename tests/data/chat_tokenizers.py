"""A BPE tokenizer with the special tokens of chat templates, in the folder of a checkpoint."""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from fot_jax.config import VocabularyConfig, VocabularyKind
from fot_jax.data.vocabulary import load_vocabulary

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXT = "  Who wrote it?\n\n'<s' & \"quotes\" {{ 7 * 7 }} naïve 你好 "


def save_tokenizer(folder, *, template=None, begins=True, **settings):
    """A BPE tokenizer with LLaMA's and ChatML's special tokens in a new folder."""
    folder.mkdir()
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([TEXT, "<|im_start|>user wrote what"] * 3, trainer)
    if begins:
        bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    bpe.save(str(folder / "tokenizer.json"))
    values = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    values |= settings | ({} if template is None else {"chat_template": template})
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    return load(folder)


def load(folder):
    path = str(folder / "tokenizer.json")
    return load_vocabulary(VocabularyConfig(kind=VocabularyKind.HF_TOKENIZER, path=path))
