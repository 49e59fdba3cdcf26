"""GORL's Theorem 2: the guiding gradient of n tuples tends to its mean. The rate is right, the printed bound is not."""

import math

import pytest
import torch
from torch.func import functional_call, grad, vmap

from metarl import nn


@pytest.fixture(scope="module")
def gradients():
    """Gradients of the cloning loss by the first layer's weight [samples, d1 * d2], one for each of 4,000 tuples."""
    generator = torch.Generator().manual_seed(0)
    actor = nn.DeterministicPolicy(3, (1.0,), (8, 8), generator).double()
    obs = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    action = torch.tanh(obs @ torch.randn(3, 1, generator=generator, dtype=torch.float64))
    params = {name: value.detach() for name, value in actor.named_parameters()}

    def loss(params, obs, action):
        return (functional_call(actor, params, (obs,)) - action).square().mean()

    found = vmap(grad(loss), (None, 0, 0))(params, obs[:, None], action[:, None])
    return next(iter(found.values())).reshape(4000, -1)


def test_the_mean_squared_error_of_the_guiding_gradient_falls_as_one_over_n(gradients):
    """E ||mean_n g - E g||^2 = trace(Cov g) / n, for draws with replacement."""
    generator = torch.Generator().manual_seed(1)
    expected = gradients.var(0, correction=0).sum()
    for n in (1, 20, 400):
        drawn = torch.randint(len(gradients), (2000, n), generator=generator)
        errors = torch.stack([gradients[rows].mean(0) - gradients.mean(0) for rows in drawn]).square().sum(1)
        # 4 standard errors of the simulated mean
        assert abs(errors.mean() - expected / n) < 4 * errors.std() / math.sqrt(len(errors))


def test_the_bound_as_printed_is_broken_and_with_another_factor_of_the_size_it_holds():
    """Eq. 10 bounds P(||.||_1 >= eps) by d1 d2 delta / (eps^2 n); its proof takes the variance of a sum of absolute
    values, whose mean is not zero, for its second moment. By Markov's and Cauchy's inequalities
    E ||.||_1^2 <= (d1 d2)^2 delta / n, so that (d1 d2)^2 delta / (eps^2 n) does bound it.
    """
    generator = torch.Generator().manual_seed(0)
    size, n, delta, eps = 100, 4, 1.0, 30.0
    drawn = torch.randn(2000, n, size, generator=generator)  # independent, of mean 0 and variance delta: as supposed
    often = (drawn.mean(1).abs().sum(1) >= eps).double().mean()
    printed, mended = (size**power * delta / (eps**2 * n) for power in (1, 2))
    assert printed < 0.03 and often > 0.99
    assert often <= mended
