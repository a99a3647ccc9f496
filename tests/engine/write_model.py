#!/usr/bin/env python3
"""Write models of random weights that a real llama-server loads and serves.

They speak nonsense, which is all the tests need: a completion that works, and one that takes long. ``tiny`` is
ready in a tenth of a second; ``big`` makes loading, prefill and single steps as slow as wanted once its process
is short of CPU. Run with an interpreter that has ``gguf`` and ``numpy``: ``write_model.py tiny|big FILE``.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import gguf
import numpy as np


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a llama; the vocabulary is the 256 bytes, three control tokens and fillers."""

    layers: int
    width: int
    heads: int
    feed_forward: int
    context: int
    vocabulary: int = 300


SHAPES = {
    "tiny": Shape(layers=2, width=64, heads=4, feed_forward=128, context=4096),
    "big": Shape(layers=8, width=2048, heads=16, feed_forward=5632, context=8192),
}


def write(name: str, path: str) -> None:
    """Write the model of that name; the same bytes every time."""
    shape = SHAPES[name]
    random = np.random.default_rng(20240420)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"holdfast-{name}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _vocabulary(writer, shape.vocabulary)

    def matrix(tensor: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)
        writer.add_tensor(tensor, values.astype(np.float16))

    def ones(tensor: str) -> None:
        writer.add_tensor(tensor, np.ones(shape.width, dtype=np.float32))

    matrix("token_embd.weight", shape.vocabulary, shape.width)
    ones("output_norm.weight")
    matrix("output.weight", shape.vocabulary, shape.width)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        ones(f"{block}.attn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{part}.weight", shape.width, shape.width)
        ones(f"{block}.ffn_norm.weight")
        matrix(f"{block}.ffn_gate.weight", shape.feed_forward, shape.width)
        matrix(f"{block}.ffn_up.weight", shape.feed_forward, shape.width)
        matrix(f"{block}.ffn_down.weight", shape.width, shape.feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    control, byte, normal = gguf.TokenType.CONTROL, gguf.TokenType.BYTE, gguf.TokenType.NORMAL
    tokens = [("<unk>", gguf.TokenType.UNKNOWN), ("<s>", control), ("</s>", control)]
    tokens += [(f"<0x{value:02X}>", byte) for value in range(256)]
    tokens += [(f"w{number:03d}", normal) for number in range(size - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def main() -> None:
    """Write one model to one file."""
    parser = argparse.ArgumentParser(description="Write a model of random weights.")
    parser.add_argument("name", choices=sorted(SHAPES))
    parser.add_argument("file")
    arguments = parser.parse_args()
    write(arguments.name, arguments.file)


if __name__ == "__main__":
    main()
