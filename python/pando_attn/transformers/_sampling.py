"""From logits to tokens, by Transformers' own processors."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .. import _arguments as arguments


class Sampler:
    """Picks tokens: the most probable one, or at random after Transformers' processors.

    Draws as ``model.generate`` does for a batch of the same size, so that the same state of the
    random numbers gives the same tokens.
    """

    def __init__(
        self,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        generator: torch.Generator | None,
    ) -> None:
        self._generator = generator
        temperature = arguments.number("temperature", temperature)
        self._greedy = temperature == 0
        self._processors = LogitsProcessorList()
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature: got {temperature}, want 0 (greedy) or more")
        top_k = arguments.integer("top_k", top_k)
        top_p = arguments.number("top_p", top_p)
        min_p = arguments.number("min_p", min_p)
        if top_k < 0:
            raise ValueError(f"top_k: got {top_k}, want 0 (all) or more")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p: got {top_p}, want more than 0 and up to 1")
        if not 0 <= min_p <= 1:
            raise ValueError(f"min_p: got {min_p}, want 0 to 1")
        for name, value in (("top_k", top_k), ("top_p", top_p != 1), ("min_p", min_p)):
            if self._greedy and value:
                raise ValueError(f"{name}: got one with temperature 0, which takes the best token")
        if not self._greedy and temperature != 1:
            self._processors.append(TemperatureLogitsWarper(temperature))
        if top_k:
            self._processors.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._processors.append(TopPLogitsWarper(top_p))
        if min_p:
            self._processors.append(MinPLogitsWarper(min_p))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Tokens ``[rows]`` of logits ``[rows, vocab_size]``."""
        if self._greedy:
            return logits.argmax(-1)
        # None of these looks at the tokens so far.
        before: Any = torch.empty((len(logits), 0), dtype=torch.int64)
        scores = self._processors(before, logits)
        probabilities = torch.softmax(scores, dim=-1)
        return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]


def log_probabilities(logits: torch.Tensor, tokens: torch.Tensor) -> list[float]:
    """Of tokens ``[rows]`` under logits ``[rows, vocab_size]``."""
    chosen = logits.gather(-1, tokens[:, None])[:, 0]
    return (chosen - torch.logsumexp(logits, -1)).tolist()
