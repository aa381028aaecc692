#!/usr/bin/env python3
"""Decode of Hugging Face transformers on this GPU: the same shape, bf16, all rows kept.

    tests/bench/transformers_decode.py [--depth 8192] [--batch 64,128,256] [--shape 135m]

Weights are random: the shape alone decides the time. Every sequence's cache holds `depth` rows of
random keys and values, then greedy tokens are decoded; the best batch is what counts. One CSV row a
batch, as bench-cuda prints them. Skips (77) without torch, transformers or a GPU.
"""

import argparse
import statistics
import sys
import time

SHAPES = {"135m": (30, 576, 9, 3, 64, 1536, 49152), "1b": (16, 2048, 32, 8, 64, 8192, 49152),
          "8b": (32, 4096, 32, 8, 128, 14336, 49152)}
STEPS, ROUNDS = 16, 3


def skip(why):
    print(f"skip: {why}")
    sys.exit(77)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=8192)
    parser.add_argument("--batch", default="16,32,64,128,256")
    parser.add_argument("--shape", choices=SHAPES, default="135m")
    parser.add_argument("--attention", default="sdpa", help="sdpa or flash_attention_2")
    options = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as error:
        skip(error)
    if not torch.cuda.is_available():
        skip("no GPU")
    layers, dim, heads, kv_heads, head_dim, ff, vocab = SHAPES[options.shape]
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, hidden_size=dim, num_attention_heads=heads, head_dim=head_dim,
        num_key_value_heads=kv_heads, intermediate_size=ff, vocab_size=vocab,
        max_position_embeddings=options.depth + 256, tie_word_embeddings=True,
        attn_implementation=options.attention)
    model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval()
    device = torch.cuda.get_device_name(0)
    print(f"# transformers {transformers.__version__}, torch {torch.__version__}, {device}, "
          f"{options.attention}, {options.depth} rows a sequence")
    print("figure,ratio,streams,value,unit,command")
    for batch in map(int, options.batch.split(",")):
        try:
            rate = decode(torch, transformers, model, config, batch, options.depth)
        except torch.cuda.OutOfMemoryError:
            print(f"# batch {batch}: out of memory")
            break
        size = 4 * layers * kv_heads * head_dim * (options.depth + STEPS * ROUNDS) * batch
        print(f"decode-transformers,1,{batch},{rate:.6g},tokens/s,"
              f"transformers_decode.py --depth {options.depth}")
        print(f"kv-bytes-transformers,1,{batch},{size:.6g},bytes,", flush=True)


def decode(torch, transformers, model, config, batch, depth):
    cache = transformers.DynamicCache()
    shape = (batch, config.num_key_value_heads, depth, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(torch.randn(shape, device="cuda", dtype=torch.bfloat16),
                     torch.randn(shape, device="cuda", dtype=torch.bfloat16), layer)
    token = torch.zeros((batch, 1), device="cuda", dtype=torch.long)
    rates, at = [], depth
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):  # the first warms up
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(STEPS):
                place = torch.tensor([at], device="cuda")
                out = model(token, past_key_values=cache, use_cache=True, cache_position=place)
                token = out.logits[:, -1:].argmax(-1)
                at += 1
            torch.cuda.synchronize()
            rates.append(batch * STEPS / (time.perf_counter() - start))
    return statistics.median(rates[1:])


if __name__ == "__main__":
    main()
