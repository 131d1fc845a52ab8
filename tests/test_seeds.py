"""Derived seeds: the same everywhere, different for every purpose."""

import hashlib

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.seeds import derive, generator, numpy_generator

names = st.lists(st.one_of(st.text(), st.integers()), max_size=4)


def test_a_derived_seed_is_the_top_of_a_sha256():
    digest = hashlib.sha256(b'[3, "k-means", 7]').hexdigest()
    assert derive(3, "k-means", 7) == int(digest[:16], 16) // 2


@given(st.integers(), names)
def test_derived_seeds_fit_63_bits_and_repeat(seed, purpose):
    assert 0 <= derive(seed, *purpose) < 2**63
    assert derive(seed, *purpose) == derive(seed, *purpose)


@given(st.integers(), names, names)
def test_purposes_do_not_share_a_seed(seed, purpose, other):
    assert (derive(seed, *purpose) == derive(seed, *other)) == (purpose == other)


def test_numbers_and_their_texts_are_different_names():
    assert derive(0, 1) != derive(0, "1")
    assert derive(0, 1, 2) != derive(0, 12)
    assert derive(0, "a", "b") != derive(0, "ab")


def test_numpy_integers_count_as_integers():
    assert derive(np.int64(5), np.int32(2)) == derive(5, 2)


def test_generators_depend_on_seed_and_purpose_alone():
    assert torch.equal(torch.rand(4, generator=generator(1, "a")), torch.rand(4, generator=generator(1, "a")))
    assert not torch.equal(torch.rand(4, generator=generator(1, "a")), torch.rand(4, generator=generator(2, "a")))
    assert numpy_generator(1, "a").random() == numpy_generator(1, "a").random()
    assert numpy_generator(1, "a").random() != numpy_generator(1, "b").random()


def test_the_global_generators_are_left_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.rand(3, generator=generator(0))
    numpy_generator(0).random(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
