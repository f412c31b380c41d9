"""What private steps cost: the noise that a budget needs, and the epsilon of the steps that were made.

The mechanism is the Poisson-subsampled Gaussian one; neighbouring data sets differ in one image, which only
one of them has (add or remove). The numbers are those of Opacus's accountants: `prv` (Gopi, Lee and Wutschitz
2021), whose epsilon is the upper end of a numerical error of 0.01, and `rdp` (Mironov 2017; Mironov, Talwar
and Zhang 2019), which is looser and needs no numerical integration.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal

from opacus.accountants import create_accountant
from opacus.accountants.utils import get_noise_multiplier

from training.errors import PrivacyError

Accountant = Literal["prv", "rdp"]

# How many steps were made with which noise multiplier and sampling rate.
Steps = tuple[float, float, int]

# How far below the asked epsilon the noise may end, as a fraction of it.
SLACK = 0.005


@functools.cache
def noise_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, accountant: Accountant
) -> float:
    """A noise multiplier with which so many steps cost at most `epsilon`, and at least 99.5 % of it.

    Raises PrivacyError if there is none.
    """
    try:
        with _quiet():
            noise: float = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=sampling_rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=SLACK * epsilon,
            )
    except ValueError as error:
        raise PrivacyError(
            f"no noise gives epsilon {epsilon:g} and delta {delta:g} in {steps} steps: {error}"
        ) from None
    return noise


def epsilon_of(history: Sequence[Steps], delta: float, accountant: Accountant) -> float:
    """The epsilon of the steps made."""
    made = create_accountant(mechanism=accountant)
    made.history = list(history)
    with _quiet():
        return float(made.get_epsilon(delta=delta))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Opacus's remark that further orders of Renyi divergence could make a bound tighter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the", UserWarning)
        yield
