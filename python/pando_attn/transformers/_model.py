"""Which models `generate` takes, and what it has to know of them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from .._arguments import kind_name

_LAYER_TYPES = ("full_attention", "sliding_attention")
# Their angles depend on the longest sequence of a batch, so that KV can't be kept for another one.
_ROPES_BY_LENGTH = ("dynamic", "longrope")


class ModelShape(NamedTuple):
    """What a model keeps of each token; of a model on several ranks, this rank's part."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    dtype: torch.dtype
    device: torch.device


def model_shape(model: Any) -> ModelShape:
    """The shape of a decoder of text; refuses other models by name."""
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model: got {kind_name(model)}, want a PreTrainedModel of Transformers")
    name = type(model).__name__
    config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False) or not model.can_generate():
        raise NotImplementedError(f"model: got {name}, want a decoder with a language model's head")
    if not model._supports_attention_backend:
        raise NotImplementedError(
            f"model: got {name}, which does not take an attn_implementation; want one that does"
        )
    others = set(getattr(config, "layer_types", None) or ()) - set(_LAYER_TYPES)
    if others:
        raise NotImplementedError(
            f"model: got {name} with layers of {', '.join(sorted(others))}, want only "
            f"{' and '.join(_LAYER_TYPES)}"
        )
    for option in ("use_bidirectional_attention", "attention_chunk_size", "num_kv_shared_layers"):
        if getattr(config, option, None):
            raise NotImplementedError(f"model: got {name} with {option}, want one without")
    for rope in _rope_types(getattr(config, "rope_parameters", None)):
        if rope in _ROPES_BY_LENGTH:
            raise NotImplementedError(
                f"model: got {name} with rope_type {rope}, whose keys depend on the longest "
                "sequence of a batch; want another"
            )
    if model.training:
        raise ValueError("model: got one in training mode, want model.eval()")
    heads = config.num_attention_heads
    return ModelShape(
        layers=config.num_hidden_layers,
        kv_heads=_of_rank(model, getattr(config, "num_key_value_heads", None) or heads),
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        dtype=model.dtype,
        device=model.device,
    )


def _of_rank(model: Any, kv_heads: int) -> int:
    """How many of a model's kv heads this rank has: tensor parallelism splits them where the
    model's plan names its projections of K and V."""
    ranks = getattr(model, "tp_size", None) or 1
    plan = getattr(model, "tp_plan", None) or {}
    k, v = (any(at.endswith(f"self_attn.{name}_proj") for at in plan) for name in "kv")
    if ranks == 1 or not (k and v):
        return kv_heads
    if kv_heads % ranks:
        raise NotImplementedError(
            f"model: got {kv_heads} kv heads on {ranks} ranks, want ranks that divide them"
        )
    return kv_heads // ranks


def _rope_types(parameters: Any) -> Iterator[str]:
    """Of a model, or of each type of its layers."""
    if isinstance(parameters, dict):
        for key, value in parameters.items():
            if key == "rope_type":
                yield value
            else:
                yield from _rope_types(value)


@contextlib.contextmanager
def through_pando(model: PreTrainedModel) -> Iterator[None]:
    """The model with ``attn_implementation="pando"``."""
    before = model.config._attn_implementation
    if before == "pando":
        yield
        return
    model.set_attn_implementation("pando")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def forward(
    model: PreTrainedModel,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    wanted: torch.Tensor,
    step: Any,
) -> torch.Tensor:
    """Logits ``[len(wanted), vocab_size]`` in fp32 of some of the tokens of a packed batch.

    Nothing here waits for the device, so that it can be captured in a CUDA graph.

    Args:
        tokens: int64 on the model's device, of all sequences, one after the other.
        positions: the same, of each token in its sequence.
        wanted: the same, indices into ``tokens``.
        step: see :class:`pando_attn.transformers._attention.Paged`.
    """
    keeps = _keeps_logits(model)
    options = {"logits_to_keep": wanted} if keeps else {}
    logits = model(
        input_ids=tokens[None],
        position_ids=positions[None],
        # Of four dimensions, it goes to the layers as it is: the pages say who sees what.
        attention_mask=torch.empty((1, 1, 0, 0), dtype=torch.bool, device=model.device),
        use_cache=False,
        pando=step,
        **options,
    ).logits[0]
    return (logits if keeps else logits[wanted]).float()


def _keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the model can leave out the logits of tokens that nobody asks for."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
