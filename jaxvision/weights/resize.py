"""Leaves for another size of image, another patch or another number of channels."""

from __future__ import annotations

import math

import jax
import numpy as np


def resize(name: str, array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """A leaf for another input size, patch size or number of channels: (array, how); None if there is no known way."""
    last = name.rpartition("/")[2]
    if last == "pos_embedding" and array.ndim == len(shape) == 3 and array.shape[2] == shape[2]:
        return _positions(array, shape)
    if last == "relative_position_bias_table" and array.ndim == len(shape) == 2 and array.shape[1] == shape[1]:
        return _relative(array, shape)
    if last == "kernel" and array.ndim == len(shape) == 4 and array.shape[3] == shape[3]:
        if array.shape[:2] == shape[:2]:
            return _channels(array, shape)
        if array.shape[2] == shape[2] and "conv_proj" in name:
            return _patches(array, shape)
    return None


def _positions(array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """[1, P + N * N, D]: the first P (class token, registers) are kept, the square is resized. Where P is 0 there and
    1 here, the class token has no position there, which is one of zeros."""
    old = math.isqrt(array.shape[1])
    prefix = array.shape[1] - old * old
    added = int(not prefix and math.isqrt(shape[1]) ** 2 != shape[1])
    new = math.isqrt(max(0, shape[1] - prefix - added))
    if new * new + prefix + added != shape[1] or not new:
        return None
    square, how = array[:, prefix:], []
    if new != old:
        square = square.reshape(1, old, old, -1)
        square = np.asarray(jax.image.resize(square, (1, new, new, shape[2]), "bicubic")).reshape(1, new * new, -1)
        how = [f"bicubic from {old} x {old} to {new} x {new} positions"]
    if added:
        how.append("zeros for the class token, which has no position there")
    return np.concatenate([np.zeros_like(array[:, :added]), array[:, :prefix], square], 1), ", ".join(how)


def _relative(array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """[(2 w - 1)^2, heads] of windows w."""
    old, new = math.isqrt(array.shape[0]), math.isqrt(shape[0])
    if old * old != array.shape[0] or new * new != shape[0]:
        return None
    square = np.asarray(jax.image.resize(array.reshape(old, old, -1), (new, new, shape[1]), "bicubic"))
    return square.reshape(shape), f"bicubic from windows of {(old + 1) // 2} to {(new + 1) // 2}"


def _channels(array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str] | None:
    """A first convolution for 1, 3 or 4 channels, of the same response to grey as timm's `adapt_input_conv`."""
    old, new = array.shape[2], shape[2]
    if new == 1 and old == 3:
        return array.sum(2, keepdims=True), "summed over the colours"
    if (old, new) in ((1, 3), (3, 4), (1, 4)):
        repeated = np.concatenate([array] * -(-new // old), 2)[:, :, :new]
        return repeated * np.float32(old / new), f"repeated for {new} channels, times {old}/{new}"
    return None


def _patches(array: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, str]:
    """A patch embedding for patches of another size.

    It gives the same tokens for resized patches, in the least squares (FlexiViT, Beyer et al. 2022,
    https://arxiv.org/abs/2212.08013).
    """
    (a, b), (c, d) = array.shape[:2], shape[:2]
    identity = np.eye(a * b, dtype=np.float32).reshape(a * b, a, b)
    enlarge = np.asarray(jax.image.resize(identity, (a * b, c, d), "bilinear")).reshape(a * b, c * d)
    kernel = np.linalg.pinv(enlarge) @ array.reshape(a * b, -1)
    return kernel.reshape(shape).astype(np.float32), f"pseudo-inverse resize of patches from {a} to {c} px"
