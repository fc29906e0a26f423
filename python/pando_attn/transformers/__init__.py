"""Hugging Face Transformers through Pando. Importing this registers it.

    import pando_attn.transformers

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="pando")
    model.generate_batch(prompts)                             # continuous batching, as it is
    pando_attn.generate(model, prompt, num_samples=64, max_new_tokens=256)

``attn_implementation="pando"`` is attention of Llama-, Qwen- and Gemma-style models: grouped heads,
norms of q and k, sliding windows, soft-caps, sinks, any mask that is a range of columns for each
row. Under Transformers' continuous batching it reads the engine's pages where they are, and those
that several requests share once. :func:`generate` keeps the KV of a prompt once for all of its
samples. On the CPU head_dim is a multiple of 8 up to 256, on CUDA 64, 128 or 256; what is not
supported is refused by name.

Needs Transformers 5.17 or later; tried with 5.17 and 5.24.
"""

from __future__ import annotations

import transformers

if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):
    raise ImportError(f"transformers: got version {transformers.__version__}, want 5.17 or later")

from transformers import AttentionInterface, AttentionMaskInterface

from ._attention import attention_forward
from ._engine import paged_attention_forward, plug_in
from ._engine_fp8 import ContinuousBatchingConfig
from ._generate import Generated, generate
from ._kv_cache import KvCache
from ._masks import visible_ranges

__all__ = [
    "ContinuousBatchingConfig",
    "Generated",
    "KvCache",
    "attention_forward",
    "generate",
    "visible_ranges",
]

AttentionInterface.register("pando", attention_forward)
AttentionInterface.register("paged|pando", paged_attention_forward)
AttentionMaskInterface.register("pando", visible_ranges)
plug_in()
