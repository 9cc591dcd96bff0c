"""The state machines of trellis-coded quantization: which of two quantizers is in force, by the symbols before.

A machine of 2^b states is a convolutional code of memory b. The more states, the nearer a sequence of levels can come
to what is to be coded, and a decoder pays nothing for them: it only follows. An encoder's search takes time in
proportion. So a file says which machine it was made with. What they save, see `docs/training.md`.

256 states are Ungerboeck's for amplitude modulation (1987, "Trellis-coded modulation with redundant signal sets, part
II", table I). Those of more states were found by trying codes at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# b -> the code's parity checks, of the quantizers and of the symbols' parities, in octal as the literature has them.
PARITY_CHECKS = {
    8: (0o515, 0o362),
    10: (0o2617, 0o1022),
    12: (0o17061, 0o4632),
    14: (0o75261, 0o35416),
    16: (0o213203, 0o150132),
}
TRAINED_BITS = 8  # state bits of the machine that networks are trained with
FAST_BITS = 12  # of the machine that is searched where no effort is asked for


@dataclass(frozen=True, eq=False)
class Machine:
    """Of S = 2^b states; each lane starts in state 0. A state's lowest bit is its quantizer. Two states of the same
    quantizer lead to a state, one by an even symbol, the other by an odd one.
    """

    # (S, 2) int32: the next state, by state and parity of the symbol.
    following: np.ndarray
    # (2 S,) int64: from which state an even symbol leads to each state, then from which an odd one does.
    came: np.ndarray
    # (S,) int64: an odd symbol leads to twins[t] from the state from which an even one leads to t.
    twins: np.ndarray

    @property
    def states(self) -> int:
        return len(self.following)


@lru_cache
def machine_of(state_bits: int) -> Machine:
    """The machine of 2^state_bits states; KeyError where there is none."""
    quantizers, parities = PARITY_CHECKS[state_bits]
    state, parity = np.arange(1 << state_bits, dtype=np.int32)[:, None], np.arange(2, dtype=np.int32)
    # A shift register with feedback from the quantizer and from the symbol; the checks without their newest bit.
    following = (state >> 1) ^ ((state & 1) * (quantizers >> 1)) ^ (parity * (parities >> 1))
    came_even, came_odd = np.argsort(following[:, 0]), np.argsort(following[:, 1])
    return Machine(following, np.concatenate((came_even, came_odd)), np.argsort(came_even)[came_odd])


@lru_cache
def shift_register(state_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The machine of 2^state_bits states, S, in other terms: what it has seen shifts a register, without feedback.

    A register r has one bit for each of the last steps, the newest on top: r >> 1 | bit << state_bits - 1 comes after
    r. Returns (S,) int64, the state that r stands for, and (S,) int64, the parity of the symbol that makes the next
    bit a 0; one of the other parity makes it a 1. (Forney 1970, "Convolutional codes I": the encoder of the same code
    that is a product with the checks' polynomials, not a quotient.)
    """
    check, following = PARITY_CHECKS[state_bits][0] >> 1, machine_of(state_bits).following
    top = state_bits - 1

    def parity_for_zero(register: np.ndarray) -> np.ndarray:
        return sum(register >> top - age & check >> age & 1 for age in range(state_bits)) & 1

    wanted = np.arange(1 << state_bits)
    register, state = np.zeros((2, len(wanted)), np.int64)  # of no symbols yet
    for age in range(state_bits):  # the bits of all registers go in, the oldest first
        bit = wanted >> age & 1
        state = following[state, parity_for_zero(register) ^ bit].astype(np.int64)
        register = register >> 1 | bit << top
    return state, parity_for_zero(register)
