"""Gradients of a training step: each part's own where it knows one, else autograd's.

A step of a small network spends most of its time in autograd's bookkeeping. A part may offer its
own gradient, in closed form, as a vector-Jacobian product:

==============================================  ====================================================
``network.vjp(x)``                              the output and ``back``, see `skvae.networks`
``likelihood.nll_vjp(raw, targets, weights)``   minus the weighted sum of log-densities, a number,
                                                and its gradient with respect to raw
``prior.kl_vjp(mean, log_var, weights,          the weighted sum of KL, a number, and its gradients
free_bits)``                                    with respect to mean and log-variance
==============================================  ====================================================

The functions here call these, and do the same by autograd for parts without. Gradients of
parameters are set, not added: nothing has to be cleared between steps. None of it wants autograd to
look on (``torch.no_grad``).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# exp of these bounds stays far inside float32, whatever an encoder says
LOG_VAR_BOUNDS = (-30.0, 10.0)
LOG_2PI = math.log(2 * math.pi)

# the second argument: whether the gradient with respect to the input is wanted
Back = Callable[[Tensor, bool], Tensor]


def network_vjp(network: Any, x: Tensor) -> tuple[Tensor, Back]:
    """The network's output, and what takes a gradient backwards through it."""
    if (own := getattr(network, "vjp", None)) is not None:
        out: tuple[Tensor, Back] = own(x)
        return out
    value, back = _by_autograd(network, x)
    return value, lambda grad, wanted: back(grad)[0]


def clear(network: Any) -> None:
    """Zero the gradients that autograd will add to.

    Of both networks, before a step: they may share layers.
    """
    if getattr(network, "vjp", None) is None:
        network.zero_grad(set_to_none=False)


def nll_vjp(
    likelihood: Any, raw: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """``- weights @ log p(targets | raw)``, a number, and its gradient with respect to raw."""
    if (own := getattr(likelihood, "nll_vjp", None)) is not None:
        out: tuple[Tensor, Tensor] = own(raw, targets, weights)
        return out
    likelihood.zero_grad(set_to_none=False)
    value, back = _by_autograd(
        lambda raw: -(weights @ likelihood.log_prob(raw, targets).sum(-1)), raw
    )
    return value, back(torch.ones_like(value))[0]


def kl_vjp(
    prior: Any, mean: Tensor, log_var: Tensor, weights: Tensor, free_bits: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``weights @ max(free_bits, KL)``, a number; its gradients to mean and log-variance."""
    if (own := getattr(prior, "kl_vjp", None)) is not None:
        out: tuple[Tensor, Tensor, Tensor] = own(mean, log_var, weights, free_bits)
        return out

    def kl(mean: Tensor, log_var: Tensor) -> Tensor:
        each: Tensor = prior.kl(mean, log_var)
        return weights @ (each.clamp_min(free_bits) if free_bits else each).sum(-1)

    prior.zero_grad(set_to_none=False)
    value, back = _by_autograd(kl, mean, log_var)
    to_mean, to_log_var = back(torch.ones_like(value))
    return value, to_mean, to_log_var


def prior_vjp(
    prior: Any, encoder: nn.Module, z: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Callable[[], None]]:
    """``- weights @ log p(z)``, a number, and its gradient with respect to z.

    The third adds to the gradients of the encoder, which a prior may be made of: call it when the
    encoder's own are set.
    """
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        # zero times z: a prior may be flat
        value = -(weights @ prior.log_prob(leaf)) + 0.0 * leaf.sum()
    own, shared = (
        [p for p in module.parameters() if p.requires_grad] for module in (prior, encoder)
    )
    to_z, *others = torch.autograd.grad(value, [leaf, *own, *shared], allow_unused=True)
    for parameter, grad in zip(own, others, strict=False):
        gradient_of(parameter).copy_(torch.zeros_like(parameter) if grad is None else grad)

    def add() -> None:
        for parameter, grad in zip(shared, others[len(own) :], strict=True):
            if grad is not None:
                gradient_of(parameter).add_(grad)

    return value.detach(), to_z, add


def _by_autograd(
    function: Callable[..., Tensor], *inputs: Tensor
) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = function(*leaves)

    def back(grad: Tensor) -> tuple[Tensor, ...]:
        value.backward(grad)
        # without a gradient: the function ignores this input
        return tuple(torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)

    return value.detach(), back


def gradient_of(parameter: Tensor) -> Tensor:
    """Where the parameter's gradient is to be written."""
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter)
    return parameter.grad


def through_clamp(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    """The gradient with respect to x, of that with respect to ``x.clamp(low, high)``."""
    out: Tensor = torch.ops.aten.hardtanh_backward(grad, x, low, high)
    return out
