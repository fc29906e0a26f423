"""What `generate` is given: prompts, and the tokens that end a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from .. import _arguments as arguments


def prompts_of(prompts: Any, vocab_size: int) -> list[np.ndarray]:
    """Token ids of each prompt."""
    if isinstance(prompts, str) or (
        isinstance(prompts, (list, tuple)) and any(isinstance(p, str) for p in prompts)
    ):
        raise TypeError("prompts: got text, want token ids, such as tokenizer(text).input_ids")
    several = isinstance(prompts, (list, tuple)) and any(
        isinstance(p, (list, tuple)) or getattr(p, "ndim", 0) for p in prompts
    )
    many = prompts if several else [prompts]
    ids = []
    for i, prompt in enumerate(many):
        name = f"prompts[{i}]" if several else "prompts"
        if isinstance(prompt, torch.Tensor):
            prompt = prompt.cpu()
        tokens = arguments.host_ints(name, prompt)
        if not len(tokens):
            raise ValueError(f"{name}: got no token, want one or more")
        if tokens.min() < 0 or tokens.max() >= vocab_size:
            worst = tokens.min() if tokens.min() < 0 else tokens.max()
            raise ValueError(f"{name}: got token {worst}, want 0 to {vocab_size - 1}")
        ids.append(tokens)
    return ids


def stops_of(model: PreTrainedModel, stop_tokens: Sequence[int] | None) -> frozenset[int]:
    """The tokens that end a sample; those of the model by default."""
    if stop_tokens is None:
        default: Any = getattr(model.generation_config, "eos_token_id", None)
        stop_tokens = [] if default is None else np.atleast_1d(default).tolist()
    return frozenset(arguments.host_ints("stop_tokens", stop_tokens).tolist())


def pages_needed(prompts: list[np.ndarray], max_new_tokens: int, size: int) -> int:
    """Pages that samples of prompts need at the most, one of each prompt that is listed."""
    whole: dict[tuple[int, bytes], int] = {}  # (page before it, tokens): page
    tails = set()
    pages = 0
    for tokens in prompts:
        page = -1
        for begin in range(0, len(tokens) - size + 1, size):
            key = (page, tokens[begin : begin + size].tobytes())
            page = whole.setdefault(key, len(whole))
        tail = len(tokens) % size
        if tail:
            tails.add(id(tokens))
        pages += -(-(tail + max_new_tokens - 1) // size)
    return pages + len(whole) + len(tails)
