"""Imports LLaMA-family checkpoints of Hugging Face and llama.cpp, and exports ours.

    sources.open_source        a folder or a GGUF file: its config, tensors by Hugging Face's names, tokenizer
    importing.import_checkpoint    source -> WORKDIR (config.json, checkpoints/0, tokenizer/)
    exporting.export_checkpoint    WORKDIR -> a Hugging Face folder, or bare Orbax parameters

Tensors are read in blocks of rows and written to their places at once (`names`): no tensor is ever held twice.
"""
